"""How fast do finished groups reach the learner's disk, next to a bare gRPC stream of their bytes?

  python -m benchmarks.stream

Groups of 8 completions of 2,048 tokens go from this process to a learner's server in another one
over loopback: checked, written to disk and synced before each acknowledgement. The bare stream
carries the same bytes and acknowledges each message, nothing else: once with a group in each
message, once with the very messages that we send, of about 2 MB. The three alternate.
"""

import collections
import concurrent.futures
import functools
import json
import multiprocessing
import os
import pathlib
import queue
import statistics
import tempfile
import threading
import time

import grpc
import numpy as np

from offpolicy_rl import types
from offpolicy_rl.replay import lag, ledger, store
from offpolicy_rl.roles.sampler_service import SamplerService
from offpolicy_rl.system import memory
from offpolicy_rl.transport import client, codec, protocol, server, weights

RESULTS = pathlib.Path(__file__).parent / "results"
COMPLETIONS, TOKENS, VOCABULARY = 8, 2048, 150_000
GROUPS = 400  # per round
PER_STEP = 16  # groups that the learner takes at once
ROUNDS = 15
SAMPLERS = (1, 4, 16, 64)
BARE = "/bare/Push"


def group(index: int) -> types.Group:
  """A finished group of the size that counts."""
  draw = np.random.default_rng(index)
  trajectories = tuple(
    types.Trajectory(
      draw.integers(0, VOCABULARY, TOKENS, np.int32),
      -draw.random(TOKENS, np.float32),
      np.zeros(TOKENS, np.int32),
      True,
      1.0,
    )
    for _ in range(COMPLETIONS)
  )
  return types.Group(f"train/{index}/0", trajectories)


def renamed(groups: list[types.Group], first: int) -> list[types.Group]:
  """The same completions as answers to the tickets from `first` on."""
  return [types.Group(f"train/{first + i}/0", g.trajectories) for i, g in enumerate(groups)]


def ticket(index: int) -> types.Ticket:
  """The ticket of a group."""
  prompt = np.arange(100, dtype=np.int32)
  name = f"train/{index}/0"
  return types.Ticket(name, types.TRAIN, index, index, prompt, "", 0, 9, COMPLETIONS, 1.0)


def serve_learner(folder: str, pipe) -> None:
  """A learner's server with its real ledger, store and checks; tells its address and CPU time."""
  memory.keep_freed_memory()
  groups = store.GroupStore(pathlib.Path(folder), decode=codec.group_of_request)
  service = SamplerService(
    ledger.Ledger(60.0),
    groups,
    weights.WeightStore(),
    lag.LagControl("async", 9),
    expected=codec.Expected(VOCABULARY, TOKENS),
  )
  service.version = 0
  identity = protocol.Identity("one", "stream", "{}", "none")
  wire, address = server.start(
    "127.0.0.1:0", identity, service.handlers(), service.weights, max_samplers=80, max_message_mb=64
  )
  pipe.send(address)
  steps = queue.Queue()
  threading.Thread(target=take_steps, args=(service.ledger, steps), daemon=True).start()
  added = 0
  while (request := pipe.recv()) != "stop":
    if isinstance(request, int):  # tickets for so many more groups
      tickets = [ticket(added + i) for i in range(request)]
      service.ledger.add(tickets)
      for first in range(0, request, PER_STEP):
        steps.put([t.ticket_id for t in tickets[first : first + PER_STEP]])
      added += request
    pipe.send(time.process_time())
  wire.stop(0)


def take_steps(book: ledger.Ledger, steps: queue.Queue) -> None:
  """Takes the groups of each step, as a learner does that is never busy."""
  while True:
    book.take(steps.get(), timeout=600)


def serve_bare(_, pipe) -> None:
  """A gRPC server that answers each message of a stream with an empty one."""
  memory.keep_freed_memory()

  def push(requests, _):
    for _ in requests:
      yield b""

  class Handler(grpc.GenericRpcHandler):
    """One method, raw bytes."""

    def service(self, handler_call_details):  # noqa: ARG002
      return grpc.stream_stream_rpc_method_handler(push)

  pool = concurrent.futures.ThreadPoolExecutor(8)
  limit = [("grpc.max_receive_message_length", 64 << 20)]
  wire = grpc.server(pool, handlers=[Handler()], options=limit)
  port = wire.add_insecure_port("127.0.0.1:0")
  wire.start()
  pipe.send(f"127.0.0.1:{port}")
  while pipe.recv() != "stop":
    pipe.send(time.process_time())
  wire.stop(0)


class Served:
  """A server process and the pipe to it."""

  def __init__(self, function, folder: str = ""):
    self._pipe, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    self._process = context.Process(target=function, args=(folder, theirs), daemon=True)
    self._process.start()
    theirs.close()
    self.address = self._pipe.recv()

  def ask(self, request="cpu") -> float:
    """CPU seconds of the server; a number adds tickets for so many groups."""
    self._pipe.send(request)
    return self._pipe.recv()

  def stop(self) -> None:
    """Ends the process."""
    self._pipe.send("stop")
    self._process.join()


def summary(values: list[float]) -> dict:
  """Median and range."""
  return {
    "median": round(statistics.median(values), 3),
    "min": round(min(values), 3),
    "max": round(max(values), 3),
  }


def seconds_of(push: grpc.StreamStreamMultiCallable, payloads: list[bytes]) -> float:
  """Until a bare server has acknowledged all."""
  started = time.perf_counter()
  assert sum(1 for _ in push(iter(payloads))) == len(payloads)
  return time.perf_counter() - started


def throughput(
  learner: Served, bare: Served, groups: list[types.Group], rounds: int = ROUNDS
) -> dict:
  """MB/s of ours and of both bare streams, alternating, and ratios per round."""
  wire = client.LearnerClient(learner.address, "stream")
  wire.hello()
  payloads = [codec.encode_group(g).SerializeToString() for g in groups]
  large = [r.SerializeToString() for r in codec.push_requests(groups, "session", "stream")]
  megabytes = sum(map(len, payloads)) / 1e6
  found = collections.defaultdict(list)
  with grpc.insecure_channel(bare.address) as channel:
    push = channel.stream_stream(BARE)
    for index in range(rounds + 1):
      learner.ask(len(groups))
      fresh = renamed(groups, index * GROUPS)
      started = time.perf_counter()
      acks = wire.push(fresh)
      ours = time.perf_counter() - started
      assert {ack.status for ack in acks} == {types.PushStatus.ACCEPTED}
      plain, plain_large = seconds_of(push, payloads), seconds_of(push, large)
      if index:  # the first round warms up
        found["ours"].append(megabytes / ours)
        found["bare"].append(megabytes / plain)
        found["bare_large_messages"].append(megabytes / plain_large)
        found["ours_to_bare"].append(plain / ours)
        found["ours_to_bare_large_messages"].append(plain_large / ours)
  wire.close()
  return {"megabytes_per_round": round(megabytes, 1)} | {k: summary(v) for k, v in found.items()}


def latency(learner: Served, groups: list[types.Group], first: int) -> dict:
  """Milliseconds from a finished group to its acknowledgement, one at a time."""
  wire = client.LearnerClient(learner.address, "latency")
  wire.hello()
  learner.ask(len(groups))
  seconds = []
  for fresh in renamed(groups, first):
    started = time.perf_counter()
    wire.push([fresh])
    seconds.append(time.perf_counter() - started)
  wire.close()
  return {f"p{q}_ms": round(1e3 * float(np.percentile(seconds, q)), 2) for q in (50, 99)}


def many_samplers(learner: Served, groups: list[types.Group], first: int) -> list[dict]:
  """Cost of 1 to 64 samplers that push the same number of groups in all, and of idle ones."""
  rows = []
  for count in SAMPLERS:
    wires = [client.LearnerClient(learner.address, f"s{i}") for i in range(count)]
    for wire in wires:
      wire.hello()
    idle_cpu, seconds = learner.ask(), 4.0
    ending = time.monotonic() + seconds
    run_all([functools.partial(idle, wire, ending) for wire in wires])
    idle_cpu = (learner.ask() - idle_cpu) / seconds
    learner.ask(len(groups))
    fresh = renamed(groups, first)
    first += len(groups)
    cpu, started = learner.ask(), time.perf_counter()
    run_all(
      [
        lambda wire=wire, share=fresh[i::count]: [wire.push([g]) for g in share]
        for i, wire in enumerate(wires)
      ]
    )
    spent = time.perf_counter() - started
    rows.append(
      {
        "samplers": count,
        "groups_per_second": round(len(groups) / spent, 1),
        "learner_cpu_ms_per_group": round(1e3 * (learner.ask() - cpu) / len(groups), 2),
        "learner_cpu_percent_when_idle": round(100 * idle_cpu, 1),
      }
    )
    for wire in wires:
      wire.close()
  return rows


def idle(wire: client.LearnerClient, ending: float) -> None:
  """What a sampler does that has nothing to do: asks for tickets, beats."""
  while time.monotonic() < ending:
    wire.lease(4, wait_seconds=1.0)
    wire.heartbeat({"tokens_per_second": 0.0}, {})


def run_all(functions: list) -> None:
  """Each in its own thread."""
  threads = [threading.Thread(target=function) for function in functions]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()


def small() -> dict[str, float]:
  """Figures for benchmarks/compare.py."""
  memory.keep_freed_memory()
  groups = [group(i) for i in range(GROUPS)]
  with tempfile.TemporaryDirectory(prefix="stream-") as folder:
    learner, bare = Served(serve_learner, os.path.join(folder, "groups")), Served(serve_bare)
    found = throughput(learner, bare, groups, rounds=5)
    learner.stop()
    bare.stop()
  return {
    "ours / bare stream": found["ours_to_bare"]["median"],
    "ours / bare, large messages": found["ours_to_bare_large_messages"]["median"],
  }


def main() -> None:
  """Prints and writes the study."""
  memory.keep_freed_memory()
  groups = [group(i) for i in range(GROUPS)]
  with tempfile.TemporaryDirectory(prefix="stream-") as folder:
    learner, bare = Served(serve_learner, os.path.join(folder, "groups")), Served(serve_bare)
    report = {
      "command": "python -m benchmarks.stream",
      "machine": f"{os.cpu_count()} cores, client and server together",
      "group": f"{COMPLETIONS} completions of {TOKENS} tokens",
      "throughput_megabytes_per_second": throughput(learner, bare, groups),
      "latency": latency(learner, groups, first=(ROUNDS + 1) * GROUPS),
      "samplers": many_samplers(learner, groups, first=(ROUNDS + 2) * GROUPS),
    }
    learner.stop()
    bare.stop()
  (RESULTS / "stream.json").write_text(json.dumps(report, indent=1) + "\n")
  print(json.dumps(report, indent=1))


if __name__ == "__main__":
  main()
