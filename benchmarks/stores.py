"""What keeps messages of the wire fastest: SQLite, LMDB, or a plain file that only grows?

  python -m benchmarks.stores

Each commit is one message of about 2 MB (15 groups of 8 completions of 2,048 tokens), synced to
disk before the next. The kinds alternate. A plain file has no index and no way to forget: it is the
floor, not a choice.
"""

import itertools
import json
import os
import pathlib
import sqlite3
import tempfile
import time
from collections.abc import Callable

import lmdb

from benchmarks import stream
from offpolicy_rl.transport import checksum, codec

COMMITS, ROUNDS = 25, 9


def open_sqlite(folder: str) -> Callable[[int, bytes], None]:
  """One table in WAL mode; every commit is synced."""
  database = sqlite3.connect(f"{folder}/sqlite", isolation_level=None)
  database.execute("pragma journal_mode=wal")
  database.execute("pragma synchronous=full")
  database.execute("create table messages (number integer primary key, data blob)")
  return lambda number, data: database.execute("insert into messages values (?, ?)", (number, data))


def open_lmdb(folder: str) -> Callable[[int, bytes], None]:
  """One table; commits are synced unless told otherwise."""
  environment = lmdb.open(f"{folder}/lmdb", map_size=1 << 40)

  def commit(number: int, data: bytes) -> None:
    with environment.begin(write=True) as transaction:
      transaction.put(b"%010d" % number, data, append=True)

  return commit


def open_file(folder: str) -> Callable[[int, bytes], None]:
  """Appends."""
  descriptor = os.open(f"{folder}/file", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

  def commit(_: int, data: bytes) -> None:
    assert os.write(descriptor, data) == len(data)
    os.fdatasync(descriptor)

  return commit


KINDS = {"sqlite": open_sqlite, "lmdb": open_lmdb, "file": open_file}


def main() -> None:
  """Prints and writes megabytes per second and CPU milliseconds per megabyte."""
  groups = [stream.group(i) for i in range(15)]
  [request] = codec.push_requests(groups, "session", "sampler")
  data = checksum.add(request.SerializeToString())
  megabytes = COMMITS * len(data) / 1e6
  rates, costs = {kind: [] for kind in KINDS}, {kind: [] for kind in KINDS}
  with tempfile.TemporaryDirectory(prefix="stores-") as folder:
    commits = {kind: opened(folder) for kind, opened in KINDS.items()}
    for turn, kind in itertools.product(range(ROUNDS + 1), KINDS):
      started, cpu = time.perf_counter(), time.process_time()
      for i in range(COMMITS):
        commits[kind](turn * COMMITS + i, data)
      if turn:  # the first warms up
        rates[kind].append(megabytes / (time.perf_counter() - started))
        costs[kind].append(1e3 * (time.process_time() - cpu) / megabytes)
  report = {
    "command": "python -m benchmarks.stores",
    "megabytes_per_commit": round(len(data) / 1e6, 2),
    "megabytes_per_second": {kind: stream.summary(found) for kind, found in rates.items()},
    "cpu_ms_per_megabyte": {kind: stream.summary(found) for kind, found in costs.items()},
    "lmdb_to_sqlite": stream.summary(
      [a / b for a, b in zip(rates["lmdb"], rates["sqlite"], strict=True)]
    ),
  }
  path = pathlib.Path(__file__).parent / "results" / "stores.json"
  path.write_text(json.dumps(report, indent=1) + "\n")
  print(json.dumps(report, indent=1))


if __name__ == "__main__":
  main()
