"""Runs Python programs in pods of a Kubernetes cluster, each in a fresh one that is deleted after.

    OFFPOLICY_RL_SANDBOX=pods:NAMESPACE/WARMPOOL

The pods come from a warm pool of agent-sandbox, with its runtime sandboxd and Python on x86-64. A
program is what bubblewrap.py makes of it: one process without network and writable files, behind
the same filter of system calls. But it may read the files of its pod, and signal what runs there.

agent-sandbox: github.com/kubernetes-sigs/agent-sandbox
"""

import concurrent.futures
import contextlib
import functools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import grpc

from offpolicy_rl.sandbox import in_pod, seccomp
from offpolicy_rl.sandbox.outcomes import ENVIRONMENT, Limits, Outcome, Program, SandboxError

WHERE = "OFFPOLICY_RL_SANDBOX"
_PORT = 9090  # of sandboxd's ProcessService
_CHUNK_BYTES = 1 << 20  # of a message to stdin
_TRIAL_SECONDS = 300.0  # a pool may have to pull an image first
_LEFT_BEHIND_SECONDS = 60  # after which the cluster deletes what a killed process has left
# What no pod may reach, beside other pods: the cluster's API, the machine's metadata, the net.
_FORBIDDEN = ("kubernetes.default.svc:443", "169.254.169.254:80", "1.1.1.1:443")
_TRIAL = """
import os, socket
def works(call, *arguments):
  try:
    call(*arguments)
  except OSError:
    return False
  return True
def write():
  os.write(os.open("x", os.O_CREAT | os.O_WRONLY), b"x")
open_doors = [works(os.fork), works(socket.socket), works(write)]
print("apart" if not any(open_doors) else f"fork, socket, file: {open_doors}")
"""
# Without the filter: it is the pod that has to be closed, whatever becomes of the program.
_PROBE = """
import os, socket, sys, threading
def probe(address):
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host, int(port)), 3).close()
  except OSError:
    return
  print(address)
threads = [threading.Thread(target=probe, args=(address,)) for address in sys.argv[1:]]
[thread.start() for thread in threads], [thread.join() for thread in threads]
token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
if os.path.exists(token): print(token)
"""


class _Pod(NamedTuple):
  """A pod that was claimed."""

  service: Any  # stub of sandboxd's ProcessService
  address: str


def is_chosen() -> bool:
  """Whether this process's environment says that programs run elsewhere than on this machine."""
  return os.environ.get(WHERE, "") not in ("", "bubblewrap")


@functools.cache
def check() -> None:
  """Raises SandboxError unless the pool has pods that keep programs apart; tries it once."""
  limits = Limits(seconds=_TRIAL_SECONDS)
  end = _end(limits)
  with _pod(end) as pod, _pod(end) as other:
    ran = _run(pod, Program(_TRIAL), "", limits, end)
    if ran.stdout != "apart\n":
      raise SandboxError(f"the sandbox does not hold in pods of {_pool()}: {ran}")
    probe = ["python3", "-I", "-c", _PROBE, other.address, *_FORBIDDEN]
    request = _messages().ExecuteRequest(config={"command": probe})
    with _as_sandbox_error():
      reached = pod.service.Execute(request, timeout=_left(end)).stdout.decode().split()
  if reached:
    raise SandboxError(
      f"{WHERE}: a pod of {_pool()} reaches {', '.join(reached)}, expected none: its template "
      "needs a networkPolicy without egress, and automountServiceAccountToken: false"
    )


def run(program: Program, stdin: str, limits: Limits) -> Outcome:
  """Implements programs.run; the time for claiming the pod counts as the program's."""
  end = _end(limits)
  with _pod(end) as pod:
    return _run(pod, program, stdin, limits, end)


def converse(asking: Program, answering: Program, limits: Limits) -> Outcome:
  """Implements programs.converse; each program has a pod of its own."""
  end = _end(limits)
  with contextlib.ExitStack() as stack:
    first, second = (stack.enter_context(_pod(end)) for _ in range(2))
    threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
    other = stack.enter_context(_Running(second, answering, limits, end))
    running = stack.enter_context(_Running(first, asking, limits, end))

    def answer() -> None:
      """Hands the answers on until the other program ends."""
      other.output(limits, running.write)
      running.close_stdin()

    answers = threads.submit(answer)
    _, stderr = running.output(limits, other.write)
    other.stop()
    answers.result()
  return Outcome("", stderr, running.status, running.ended)


def _run(pod: _Pod, program: Program, stdin: str, limits: Limits, end: float) -> Outcome:
  with (
    concurrent.futures.ThreadPoolExecutor(1) as threads,
    _Running(pod, program, limits, end) as running,
  ):
    threads.submit(running.write_all, stdin.encode("utf-8", "replace"))
    texts = running.output(limits)
  return Outcome(*texts, running.status, running.ended)


class _Running:
  """A program in a pod; ended on exit."""

  def __init__(self, pod: _Pod, program: Program, limits: Limits, end: float):
    self.status, self.ended = 128 + 9, ""
    self._service, self._end = pod.service, end
    launcher = pathlib.Path(in_pod.__file__).read_text(encoding="utf-8")
    request = _messages().StartRequest(config={"command": ["python3", "-I", "-c", launcher]})
    with _as_sandbox_error():
      self._events = pod.service.Start(request, timeout=_left(end))
      self._id = next(self._events).init.process_id
    start = json.dumps(
      {
        "files": program.all_files,
        "environment": ENVIRONMENT,
        "limits": {
          "RLIMIT_AS": limits.memory_mb << 20,
          "RLIMIT_CPU": limits.whole_cpu_seconds,
          "RLIMIT_FSIZE": 0,
          "RLIMIT_NOFILE": 64,
          "RLIMIT_CORE": 0,
        },
        "threads": limits.threads,
        "filter": seccomp.program().hex(),
        "machine": seccomp.MACHINE,
      }
    ).encode()
    self.write(b"%12d" % len(start) + start)

  def __enter__(self) -> "_Running":
    return self

  def __exit__(self, *_: object) -> None:
    self.stop()

  def write(self, data: bytes) -> None:
    """To the program's stdin; lost if it has ended."""
    for at in range(0, len(data), _CHUNK_BYTES):
      self._tell(input=data[at : at + _CHUNK_BYTES])

  def close_stdin(self) -> None:
    """The program will read no more."""
    self._tell(eof={})

  def write_all(self, data: bytes) -> None:
    """All that the program will read."""
    self.write(data)
    self.close_stdin()

  def _tell(self, **payload: Any) -> None:
    request = _messages().WriteStdinRequest(process_id=self._id, **payload)
    with contextlib.suppress(grpc.RpcError):  # what became of the program, its events say
      self._service.WriteStdin(request, timeout=_left(self._end))

  def output(
    self, limits: Limits, forward: Callable[[bytes], None] | None = None
  ) -> tuple[str, str]:
    """(stdout, stderr), read until the program ends; stdout goes to `forward` if that is given."""
    kept, most = {"stdout": b"", "stderr": b""}, limits.output_bytes
    for kind, data in self._said():
      if kind == "stdout" and forward:
        forward(data)
        continue
      kept[kind] += data
      if len(kept[kind]) > most:
        self.ended = "output"
        break
    stdout, stderr = (text[:most].decode(errors="replace") for text in kept.values())
    return stdout, stderr

  def _said(self) -> Iterator[tuple[str, bytes]]:
    """Parts of stdout and stderr as they come; sets `status` and `ended` at its end."""
    has_begun, before = False, b""
    try:
      for event in self._events:
        kind = event.WhichOneof("event")
        if kind == "exit":
          self._exit(event.exit.exit_code)
          continue
        data = getattr(event, kind)
        if kind == "stdout" and not has_begun and data.startswith(in_pod.BEGUN):
          has_begun, data = True, data[len(in_pod.BEGUN) :]
        before += b"" if has_begun else data
        if has_begun and data:
          yield kind, data
    except grpc.RpcError as error:
      assert isinstance(error, grpc.Call), "errors of calls are calls"
      if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        self.ended = "seconds"
      elif error.code() != grpc.StatusCode.CANCELLED:
        raise SandboxError(f"a pod of {_pool()} is gone: {error.details()!s:.300}") from None
    if not has_begun and self.ended:
      raise SandboxError(
        f"a pod of {_pool()} can't start a program: got {before[-300:].decode(errors='replace')!r}"
      )

  def _exit(self, code: int) -> None:
    self.ended = in_pod.ENDS.get(code, "exit")
    self.status = self.status if self.ended != "exit" else code % 256

  def stop(self) -> None:
    """Ends the program if it is still there."""
    self._events.cancel()


# ---------------------------------------------------------------- the cluster


def _end(limits: Limits) -> float:
  return time.monotonic() + limits.seconds


def _left(end: float) -> float:
  """Seconds."""
  return max(0.0, end - time.monotonic())


@contextlib.contextmanager
def _as_sandbox_error() -> Generator[None]:
  """Turns whatever the cluster's client raises, which is no fault of the program."""
  try:
    yield
  except SandboxError:
    raise
  except Exception as error:
    why = error.details() if isinstance(error, grpc.Call) else error
    raise SandboxError(f"no pod of {_pool()}: {why!s:.300}") from error


@contextlib.contextmanager
def _pod(end: float) -> Generator[_Pod]:
  """A fresh pod, which is deleted at the end."""
  namespace, name = _pool().split("/")
  with _as_sandbox_error():
    client, left = _client(), math.ceil(_left(end))
    sandbox = client.create_sandbox(
      name,
      namespace,
      sandbox_ready_timeout=left,
      shutdown_after_seconds=left + _LEFT_BEHIND_SECONDS,
    )
  try:
    with _as_sandbox_error():
      sandbox.connector.connect()
      stub = _stubs()[1].ProcessServiceStub(sandbox.connector.grpc_channel())
      address = f"{sandbox.get_pod_ip()}:{_PORT}"
    yield _Pod(stub, address)
  finally:
    client.delete_sandbox(sandbox.claim_name, namespace)


def _pool() -> str:
  """NAMESPACE/WARMPOOL."""
  where = os.environ.get(WHERE, "")
  kind, _, pool = where.partition(":")
  if kind != "pods" or len(pool.split("/")) != 2 or not all(pool.split("/")):
    raise SandboxError(
      f"{WHERE}: got {where!r:.100}, expected pods:NAMESPACE/WARMPOOL, or bubblewrap"
    )
  return pool


@functools.cache
def _client() -> Any:
  """The client of this process; finds the cluster as kubectl does, or inside of it."""
  _stubs()
  import k8s_agent_sandbox
  from k8s_agent_sandbox import models

  direct = models.SandboxdInClusterConnectionConfig(mode="in-cluster-pod-ip", grpc_port=_PORT)
  return k8s_agent_sandbox.SandboxClient(connection_config=direct)


@functools.cache
def _stubs() -> tuple[Any, Any]:
  """(messages, stubs) of sandboxd's ProcessService."""
  try:
    from k8s_agent_sandbox.commands import _process_stubs
  except ImportError as error:
    raise SandboxError(
      f"{WHERE}: pods need pip install offpolicy-rl[pods] (here: launch/install.sh .venv pods): "
      f"{error}"
    ) from None
  return _process_stubs.process_pb2, _process_stubs.process_pb2_grpc


def _messages() -> Any:
  return _stubs()[0]
