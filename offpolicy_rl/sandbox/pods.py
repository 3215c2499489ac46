"""Runs Python programs in pods of a Kubernetes cluster, deleted with all that is in them.

    OFFPOLICY_RL_SANDBOX=pods:NAMESPACE/WARMPOOL

The pods come from a warm pool of agent-sandbox, with its runtime sandboxd and Python on x86-64. A
program is one process without network and without a file that it may write, behind bubblewrap's
filter of system calls and that for pods. But it may read its pod's files. A pod that fails, late or
early, raises SandboxError: it says nothing about the program.

agent-sandbox: github.com/kubernetes-sigs/agent-sandbox
"""

import concurrent.futures
import contextlib
import functools
import json
import math
import os
import pathlib
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, TypeVar

import grpc

from offpolicy_rl.sandbox import in_pod, inside, seccomp
from offpolicy_rl.sandbox.outcomes import (
  ENVIRONMENT,
  WHERE,
  Limits,
  Outcome,
  Program,
  Run,
  SandboxError,
)

_PORT = 9090  # of sandboxd's ProcessService
_CHUNK_BYTES = 1 << 20  # of a message to stdin
_CLAIM_SECONDS = 120.0  # for a pod, which a worker's own limit may end sooner
_TRIAL_SECONDS = 300.0  # the same at the first look: a pool may have to pull an image
_DELETE_SECONDS = 2.0  # that a program's outcome waits for the deletion of its pod
_LIFE_SECONDS = 900  # after which the cluster deletes what a killed process has left
_ANSWER_SECONDS = 3.0  # for a sign of life
# What no pod may reach, beside other pods and the cluster's API: the machine's metadata, the net.
_FORBIDDEN = ("169.254.169.254:80", "1.1.1.1:443")
_TRIAL = """
import os, socket
def works(call, *arguments):
  try:
    call(*arguments)
  except OSError:
    return False
  return True
doors = {
  "fork": works(os.fork),
  "socket": works(socket.socket),
  "file": works(open, "new.txt", "w"),
  "link": works(os.symlink, "a", "b"),
  "signal": works(os.kill, os.getppid(), 0),
  "memory": works(open, f"/proc/{os.getppid()}/mem", "r+b"),
}
print(*[name for name, is_open in doors.items() if is_open] or ["apart"])
"""
# Without the filter: it is the pod that has to be closed, whatever becomes of the program.
_PROBE = """
import os, socket, sys, threading
def probe(address):
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), 3).close()
  except OSError:
    return
  print(address)
addresses = sys.argv[1:]
if api := os.environ.get("KUBERNETES_SERVICE_HOST"):
  addresses.append(f"{api}:{os.environ['KUBERNETES_SERVICE_PORT']}")
threads = [threading.Thread(target=probe, args=(address,)) for address in addresses]
[thread.start() for thread in threads], [thread.join() for thread in threads]
token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
if os.path.exists(token): print(token)
print("probed")
"""
_Result = TypeVar("_Result")


class _Pod(NamedTuple):
  """A pod that was claimed."""

  service: Any  # stub of sandboxd's ProcessService
  address: str


@functools.cache
def check() -> None:
  """Raises SandboxError unless the pool has pods that keep programs apart; tries it once."""
  with _pod(_TRIAL_SECONDS) as pod, _pod(_TRIAL_SECONDS) as other:
    ran = _run(pod, Program(_TRIAL), "", Limits(seconds=60.0))
    if ran.stdout != "apart\n":
      raise SandboxError(f"the sandbox does not hold in pods of {_pool()}: {ran}")
    probe = ["python3", "-I", "-c", _PROBE, other.address, *_FORBIDDEN]
    request = _messages().ExecuteRequest(config={"command": probe})
    with _as_sandbox_error():
      probed = pod.service.Execute(request, timeout=60.0)
  *reached, last = probed.stdout.decode().split() or [""]
  if last != "probed":
    raise SandboxError(f"a pod of {_pool()} can't be looked at: {probed.stderr[-300:]!r}")
  if reached:
    raise SandboxError(
      f"{WHERE}: a pod of {_pool()} reaches {', '.join(reached)}, expected none: its template "
      "needs a networkPolicy without egress, and automountServiceAccountToken: false"
    )


@contextlib.contextmanager
def together() -> Generator[Run]:
  """Implements programs.together: the programs share a pod, claimed for the first one."""
  with contextlib.ExitStack() as stack:

    @functools.cache
    def pod() -> _Pod:
      return stack.enter_context(_pod(_CLAIM_SECONDS))

    yield lambda program, stdin, limits: _run(pod(), program, stdin, limits)


def converse(asking: Program, answering: Program, limits: Limits) -> Outcome:
  """Implements programs.converse; each program has a pod of its own."""
  with contextlib.ExitStack() as stack:
    first, second = (stack.enter_context(_pod(_CLAIM_SECONDS)) for _ in range(2))
    end = time.monotonic() + limits.seconds
    threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
    other = stack.enter_context(_Running(second, answering, limits, end))
    running = stack.enter_context(_Running(first, asking, limits, end))

    def answer() -> None:
      """Hands the answers on until the other program ends."""
      try:
        other.output(limits, running.write)
      finally:
        running.close_stdin()

    answers = threads.submit(answer)
    try:
      _, stderr = running.output(limits, other.write)
    finally:
      other.stop()
    answers.result()
  return Outcome("", stderr, running.status, running.ended)


def _run(pod: _Pod, program: Program, stdin: str, limits: Limits) -> Outcome:
  with (
    concurrent.futures.ThreadPoolExecutor(1) as threads,
    _Running(pod, program, limits, time.monotonic() + limits.seconds) as running,
  ):
    threads.submit(running.write_all, stdin.encode("utf-8", "replace"))
    texts = running.output(limits)
  return Outcome(*texts, running.status, running.ended)


class _Running:
  """A program in a pod; ended on exit."""

  def __init__(self, pod: _Pod, program: Program, limits: Limits, end: float):
    self.status, self.ended = 128 + 9, ""
    self._service, self._end, self._is_stopped = pod.service, end, False
    launcher = pathlib.Path(in_pod.__file__).read_text(encoding="utf-8")
    request = _messages().StartRequest(config={"command": ["python3", "-I", "-c", launcher]})
    with _as_sandbox_error():
      self._events = pod.service.Start(request, timeout=_left(end), wait_for_ready=True)
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
        "filter": seccomp.pod_program().hex(),
        "own_process": seccomp.OWN_PROCESS,
        "machine": seccomp.MACHINE,
        "sink": inside.SINK,
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
        before = b"" if has_begun else (before + data)[-300:]
        if has_begun and data:
          yield kind, data
    except grpc.RpcError as error:
      self._lost(error)
    if self.ended == in_pod.GONE:
      raise SandboxError(f"a pod of {_pool()} is gone: it was told to end, or killed")
    if not has_begun and self.ended:
      raise SandboxError(
        f"a pod of {_pool()} can't start a program: got {before.decode(errors='replace')!r}"
      )

  def _exit(self, code: int) -> None:
    if code < 0:  # a signal ended the launcher, which no program can reach
      self.ended = in_pod.GONE
      return
    self.ended = in_pod.ENDS.get(code, "exit")
    self.status = self.status if self.ended != "exit" else code % 256

  def _lost(self, error: grpc.RpcError) -> None:
    """Sets how the program ended whose events broke off; SandboxError if its pod did."""
    assert isinstance(error, grpc.Call), "errors of calls are calls"
    if self._is_stopped:
      return
    if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED or not self._answers():
      raise SandboxError(f"a pod of {_pool()} is gone: {error.details()!s:.300}") from None
    self.ended = "seconds"

  def _answers(self) -> bool:
    """Whether the pod is still there: a machine that is lost says nothing."""
    request = _messages().WriteStdinRequest(process_id=self._id, input=b"")
    try:
      self._service.WriteStdin(request, timeout=_ANSWER_SECONDS)
    except grpc.RpcError as error:
      assert isinstance(error, grpc.Call), "errors of calls are calls"
      silent = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
      return error.code() not in silent
    return True

  def stop(self) -> None:
    """Ends the program if it is still there."""
    self._is_stopped = True
    self._events.cancel()


def _left(end: float) -> float:
  """Seconds."""
  return max(0.0, end - time.monotonic())


# ---------------------------------------------------------------- the cluster


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
def _pod(seconds: float) -> Generator[_Pod]:
  """A fresh pod, which is deleted at the end."""
  namespace, name = _pool().split("/")
  with _as_sandbox_error():
    client, is_late = _client(), threading.Event()

    def claim() -> tuple[Any, str | None]:
      """(the sandbox, its pod's address)."""
      sandbox = client.create_sandbox(
        name,
        namespace,
        sandbox_ready_timeout=math.ceil(seconds),
        shutdown_after_seconds=_LIFE_SECONDS,
      )
      if is_late.is_set():
        client.delete_sandbox(sandbox.claim_name, namespace)
      return sandbox, sandbox.get_pod_ip()

    try:
      sandbox, ip = _within(seconds, claim)
    except TimeoutError:
      is_late.set()
      raise
  try:
    if ip is None:
      raise SandboxError(f"no pod of {_pool()}: the sandbox has no address")
    address = f"[{ip}]:{_PORT}" if ":" in ip else f"{ip}:{_PORT}"
    # A proxy that the environment names is for the internet.
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
      yield _Pod(_stubs()[1].ProcessServiceStub(channel), address)
  finally:
    delete = lambda: client.delete_sandbox(sandbox.claim_name, namespace)
    with contextlib.suppress(TimeoutError):  # it goes on, and the claim has an end of its own
      _within(_DELETE_SECONDS, delete)


def _within(seconds: float, call: Callable[[], _Result]) -> _Result:
  """The result of a call to the cluster's API, whose client knows no limit; or TimeoutError."""
  future: concurrent.futures.Future = concurrent.futures.Future()

  def answer() -> None:
    """Runs in the thread."""
    try:
      future.set_result(call())
    except BaseException as error:
      future.set_exception(error)

  threading.Thread(target=answer, daemon=True).start()
  try:
    return future.result(seconds)
  except concurrent.futures.TimeoutError:
    raise TimeoutError(f"the cluster has not answered within {seconds:g} s") from None


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
