"""Rows of data files: JSON lines, plain or compressed, Parquet, and what `datasets` saves.

A file that can't be read raises TaskError, which names it, the line, and what to do. An unusable
row becomes a LeftOut in its place; the task decides how many are too many.
"""

import bz2
import collections
import decimal
import gzip
import io
import itertools
import json
import lzma
import math
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from offpolicy_rl.system import nearby


def _open_zstd(path: pathlib.Path, _) -> io.BufferedReader:
  import pyarrow  # some 50 MB: only where there are such files

  return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))


_OPENERS = {
  b"\x1f\x8b": gzip.open,
  b"BZh": bz2.open,
  b"\xfd7zXZ\x00": lzma.open,
  b"\x28\xb5\x2f\xfd": _open_zstd,
}
_PARQUET = b"PAR1"
_STATE = "state.json"  # of a data set that `datasets` saved
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, OSError)
# First bytes of files in other formats -> format, what to do.
_OTHERS = {
  b"PK\x03\x04": ("a zip archive", "unpack it"),
  b"\xff\xfe\0\0": ("UTF-32", "convert it with iconv -f UTF-32 -t UTF-8"),
  b"\xff\xfe": ("UTF-16", "convert it with iconv -f UTF-16 -t UTF-8"),
  b"\xfe\xff": ("UTF-16", "convert it with iconv -f UTF-16 -t UTF-8"),
  **dict.fromkeys((*_OPENERS, _PARQUET), ("a compressed file in a compressed one", "unpack it")),
}
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")
_LONGEST_LINE = 1 << 26  # characters; a file without line ends must not fill the memory
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # bytes, as "surrogateescape" has them
_BATCH = 1000  # rows of Parquet at a time
# Python type -> its name in JSON.
_KINDS = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}


class TaskError(ValueError):
  """Problems of a task can't be read; names the key or the file and line, and what was expected."""


class RowError(ValueError):
  """A row can't be used; says why."""


class LeftOut(NamedTuple):
  """A row that can't be used."""

  where: str  # "file:line"
  why: str


class Values(dict):
  """A JSON object; `twice` names the keys that it has more than once."""

  twice: frozenset[str] = frozenset()


class Row(NamedTuple):
  """A row and where it is."""

  where: str  # "file:line"
  values: Values


def read(path: pathlib.Path) -> Iterator[Row | LeftOut]:
  """The rows of a file in order, without blank lines; the first bytes decide the format.

  Of a folder: of the files that `datasets` saved in it, or else of its Parquet files by name; of a
  pattern (a name with *): of the files that it matches, by name.

  TaskError if the file is missing, can't be read, is not UTF-8, or has no rows; of several files,
  some shards of a table may have none.
  """
  number = 0
  for row in _rows(path):
    number += 1
    yield row
  if not number:
    raise TaskError(f"{path}: got no rows, expected one JSON object per line")


def _rows(path: pathlib.Path) -> Iterator[Row | LeftOut]:
  if path.is_dir() or (matching := matches(path)):
    for file in _files(path) if path.is_dir() else matching:
      yield from _rows(file)
    return
  try:
    with path.open("rb") as file:
      start = file.read(8)
    if path.suffix == ".arrow":
      found = _numbered(path, "Arrow", _arrow(path))
    elif start.startswith(_PARQUET):
      found = _numbered(path, "Parquet", _parquet(path))
    else:
      found = _json_rows(path, start)
    yield from found
  except OSError as error:
    raise TaskError(f"{path}: can't be read: {error.strerror or error}") from None


def matches(pattern: pathlib.Path) -> list[pathlib.Path]:
  """The files whose names a pattern with * in its last part matches, by name; [] for a file."""
  is_pattern = "*" in pattern.name and not pattern.exists()
  return sorted(pattern.parent.glob(pattern.name)) if is_pattern else []


def text(values: Values, column: str) -> str:
  """The text in a column of a row, a number as text; RowError for anything else, or blank text."""
  value = values.get(column)
  if isinstance(value, bool) or not isinstance(value, str | int | float | decimal.Decimal):
    given = f"{value!r:.60}" if column in values else f"only the columns {sorted(values)!s:.200}"
    raise RowError(f"{column}: got {given}, expected a text or a number")
  if column in values.twice:
    raise RowError(f"{column}: there twice, expected once")
  if isinstance(value, float):
    return _number(value, column)
  if isinstance(value, decimal.Decimal):
    return f"{value:f}"
  value = str(value)
  if not value.strip():
    raise RowError(f"{column}: got {value!r:.60}, expected a text that is not blank")
  check_encoding(value, column)
  return value


def data(values: Values, column: str) -> str | list | dict:
  """The array or object in a column of a row, or its text; RowError for anything else."""
  value = values.get(column)
  if not isinstance(value, list | dict) or column in values.twice:
    return text(values, column)
  try:
    check_encoding(json.dumps(value, ensure_ascii=False), column)
  except (TypeError, RecursionError) as error:  # dates of Parquet
    raise RowError(f"{column}: got no JSON: {error!s:.100}") from None
  return value


def chat(values: Values, column: str) -> tuple[str, tuple[dict[str, str], ...]]:
  """(question, messages) of a column: a text and no messages, or a list of {role, content}.

  The question of a list is all of it as a text. RowError unless the list ends with a user's message
  and all are texts.
  """
  value = values.get(column)
  if not isinstance(value, list):
    return text(values, column), ()
  messages = tuple(_message(one, f"{column}[{i}]") for i, one in enumerate(value))
  if not messages or messages[-1]["role"] != "user":
    last = repr(messages[-1]["role"]) if messages else "no message"
    raise RowError(f"{column}: got {last} at the end, expected a message of the role 'user'")
  if len(messages) == 1:
    return messages[0]["content"], messages
  return "\n".join(f"{one['role']}: {one['content']}" for one in messages), messages


def _message(value, where: str) -> dict[str, str]:
  if not isinstance(value, dict):
    raise RowError(f"{where}: got {value!r:.60}, expected an object with role and content")
  message = {}
  for key in ("role", "content"):
    if not isinstance(value.get(key), str) or not value[key].strip():
      raise RowError(f"{where}: {key}: got {value.get(key)!r:.60}, expected a text")
    check_encoding(value[key], f"{where}: {key}")
    message[key] = value[key]
  return message


def check_encoding(value: str, column: str) -> None:
  r"""RowError for half of a surrogate pair (\ud83d): JSON can write it, UTF-8 can't."""
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise RowError(
      f"{column}: got half of a surrogate pair, {value[error.start]!r}, at character "
      f"{error.start}, expected Unicode text"
    ) from None


def _number(value: float, column: str) -> str:
  """A number as text; 72.0 is "72": a missing value elsewhere makes a table's integers floats."""
  if not math.isfinite(value):
    raise RowError(f"{column}: got {value}, expected a text or a finite number")
  return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def _json_rows(path: pathlib.Path, start: bytes) -> Iterator[Row | LeftOut]:
  unpack = next((how for magic, how in _OPENERS.items() if start.startswith(magic)), None)
  number, blank = 0, True
  try:
    for line in _lines(path, unpack or open):
      number += 1
      if line.strip():
        yield _row(path, number, line)
        blank = False
  except _DAMAGED as error:
    if unpack is None:
      raise
    raise TaskError(
      f"{path}:{number + 1}: can't be unpacked, the file is damaged: {error}"
    ) from None
  if blank:  # unlike a table, it may have been cut
    raise TaskError(f"{path}: got no rows, expected one JSON object per line")


def _lines(path: pathlib.Path, opener: Callable) -> Iterator[str]:
  """Lines of bounded length; bytes that are not UTF-8 become surrogates that errors can name."""
  with opener(path, "rb") as file:
    _check_beginning(path, file.peek(8))
    lines = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape")
    while line := lines.readline(_LONGEST_LINE):
      yield line


def _check_beginning(path: pathlib.Path, start: bytes) -> None:
  kind = next((kind for magic, kind in _OTHERS.items() if start.startswith(magic)), None)
  if kind is None and b"\0" in start[:8]:
    kind = ("UTF-16 or binary", "convert it to UTF-8")
  if kind is not None:
    raise TaskError(f"{path}:1: got {kind[0]}, expected JSON lines in UTF-8; {kind[1]}")


def _row(path: pathlib.Path, number: int, line: str) -> Row | LeftOut:
  where = f"{path}:{number}"
  if len(line) >= _LONGEST_LINE:
    raise TaskError(
      f"{where}: got a line of {_LONGEST_LINE >> 20} MB or more, expected one JSON object per line"
    )
  if bad := _NO_UTF8.search(line):
    raise TaskError(
      f"{where}: got the byte 0x{ord(bad[0]) - 0xDC00:02x}, which is no UTF-8, at character "
      f"{bad.start() + 1}; convert the file, e.g. with iconv -f LATIN1 -t UTF-8"
    )
  try:
    values = json.loads(line, object_pairs_hook=_values)
  except RecursionError:
    return LeftOut(where, "got JSON that is nested too deeply")
  except json.JSONDecodeError as error:
    why = f"no JSON: {error.msg} at character {error.colno}"
    return LeftOut(where, why + (_hint(line) if number == 1 else ""))
  except ValueError as error:  # an integer of more digits than Python reads
    return LeftOut(where, f"no JSON: {error!s:.200}")
  if not isinstance(values, Values):
    kind = _KINDS.get(type(values), "a number")
    return LeftOut(where, f"got {kind}, expected an object" + (_hint(line) if number == 1 else ""))
  return Row(where, values)


def _hint(first: str) -> str:
  jq = {"[": "'.[]'", "{": "."}.get(first.lstrip()[:1])
  if jq:
    return f"; one object per line: jq -c {jq} FILE"
  return "; CSV is not read, only JSON lines and Parquet" if "," in first else ""


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The data files of a folder."""
  if (folder / "dataset_dict.json").is_file():
    splits = sorted(path.parent.name for path in folder.glob(f"*/{_STATE}"))
    raise TaskError(f"{folder}: got several splits, expected the folder of one of them: {splits}")
  if (folder / _STATE).is_file():
    try:
      state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
      files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
      raise TaskError(f"{folder / _STATE}: got {error!r:.100}, expected _data_files") from None
    if state.get("_indices_data_files"):
      raise TaskError(
        f"{folder / _STATE}: got _indices_data_files, expected none: save the data set again after "
        "flatten_indices()"
      )
    return files
  files = sorted(folder.glob("*.parquet"))
  if not files:
    there = nearby.files(folder / "*.parquet")
    raise TaskError(f"{folder}: can't be read: got a folder without {_STATE} and *.parquet{there}")
  splits = sorted({match[1] for file in files if (match := _SHARD.fullmatch(file.name))})
  if len(splits) > 1:  # in a repository of a data set all splits are in one folder
    raise TaskError(
      f"{folder}: got the splits {', '.join(splits)}, expected those of one: "
      f"{folder / splits[-1]}-*.parquet"
    )
  return files


def _arrow(path: pathlib.Path) -> Iterator[Values]:
  import pyarrow

  with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as batches:
    slices = (
      batch.slice(start, _BATCH) for batch in batches for start in range(0, batch.num_rows, _BATCH)
    )
    yield from _table(batches.schema.names, slices)


def _values(pairs: list[tuple]) -> Values:
  values = Values(pairs)
  if len(values) < len(pairs):
    counts = collections.Counter(key for key, _ in pairs)
    values.twice = frozenset(key for key, count in counts.items() if count > 1)
  return values


def _parquet(path: pathlib.Path) -> Iterator[Values]:
  from pyarrow import parquet  # some 50 MB: only where there are such files

  with parquet.ParquetFile(path) as file:
    yield from _table(file.schema_arrow.names, file.iter_batches(_BATCH))


def _table(names: list[str], batches: Iterable) -> Iterator[Values]:
  counts = collections.Counter(names)
  twice = frozenset(name for name, count in counts.items() if count > 1)
  lists = (batch.to_pylist() for batch in _as_written(batches))
  for pairs in itertools.chain.from_iterable(lists):
    values = Values(pairs)
    values.twice = twice
    yield values


def _numbered(path: pathlib.Path, kind: str, table: Iterator[Values]) -> Iterator[Row]:
  number = 0
  try:
    for number, values in enumerate(table, 1):
      yield Row(f"{path}:{number}", values)
  except Exception as error:  # of pyarrow; dates, time zones, ... that Python doesn't have
    why = " ".join(str(error).split())
    raise TaskError(f"{path}:{number + 1}: can't be read as {kind}: {why:.200}") from None


def _as_written(batches: Iterable) -> Iterator:
  """Batches in which 0.1 of 32 or 16 bits is 0.1, not 0.10000000149."""
  import pyarrow

  for batch in batches:
    columns = [
      column.cast(pyarrow.string()).cast(pyarrow.float64())
      if column.type in (pyarrow.float16(), pyarrow.float32())
      else column
      for column in batch.columns
    ]
    yield pyarrow.RecordBatch.from_arrays(columns, batch.schema.names)
