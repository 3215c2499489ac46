"""Programs that attack: none reaches the machine, and nothing is left of any.

They are bounded, and go on in a namespace of their own only, so that a sandbox that does not hold
costs a red test and not the machine.
"""

import os
import pathlib
import resource
import socket
import subprocess
import textwrap
import threading
import time

import pytest

from offpolicy_rl.sandbox import bubblewrap, programs
from offpolicy_rl.sandbox.outcomes import Limits, Outcome, Program
from tests.sandbox import here

pytestmark = here.needs_sandbox
LIMITS = Limits(seconds=100.0, cpu_seconds=2.0, memory_mb=256)  # on a busy machine
# The first lines of attacks that try many things: `tried` says what came of one.
TRIED = """
import ctypes, errno, os, sys
if os.getpid() != 1:
  sys.exit("this is the machine's own namespace")
libc = ctypes.CDLL(None, use_errno=True)
def tried(name, attack):
  try:
    result = attack()
  except BaseException as error:
    result = type(error).__name__
  print(name, result, flush=True)
def call(number, *arguments):
  value = libc.syscall(number, *arguments)
  os.getpid() == 1 or os._exit(0)  # a further process
  return value if value >= 0 else errno.errorcode[ctypes.get_errno()]
"""


def run(attack: str, limits: Limits = LIMITS) -> Outcome:
  outcome = programs.run(textwrap.dedent(attack), limits=limits)
  assert not here.processes(), "something is left of it"
  return outcome


def tries(attack: str) -> dict[str, str]:
  """{name: what came of it}; the program must reach its end."""
  outcome = run(TRIED + textwrap.dedent(attack))
  assert (outcome.status, outcome.ended) == (0, "exit"), outcome
  return dict(line.split(" ", 1) for line in outcome.stdout.splitlines())


def test_a_fork_bomb():
  found = tries("""
    import multiprocessing, subprocess
    tried("fork", lambda: os.fork() or os._exit(0))  # no bomb, should it ever go off
    tried("vfork", lambda: call(58))
    tried("clone", lambda: call(56, 17, 0, 0, 0, 0))
    tried("clone3", lambda: call(435, ctypes.create_string_buffer(88), 88))
    tried("spawn", lambda: subprocess.run([sys.executable, "-c", "1"]))
    tried("posix_spawn", lambda: os.posix_spawn("/prlimit", ["prlimit"], {}))
    tried("multiprocessing", lambda: multiprocessing.Process(target=print).start())
  """)
  assert found == {
    "fork": "PermissionError",
    "vfork": "EPERM",
    "clone": "EPERM",
    "clone3": "ENOSYS",
    "spawn": "PermissionError",
    "posix_spawn": "PermissionError",
    "multiprocessing": "PermissionError",
  }


@pytest.mark.long
@pytest.mark.parametrize("stack", [0, 32768])
def test_a_bomb_of_threads(stack):
  attack = f"""
    import threading, time
    threading.stack_size({stack})
    started = 0
    for started in range(2000):
      try:
        threading.Thread(target=time.sleep, args=(60,)).start()
      except RuntimeError:
        break
    print(started, flush=True)
    os._exit(0)
  """
  outcome = run("import os" + textwrap.dedent(attack))
  assert outcome.ended == "threads" or int(outcome.stdout) <= 64, outcome


@pytest.mark.long
@pytest.mark.parametrize(
  "attack",
  [
    "x = [0]\nwhile len(x) < 1 << 28: x += x",
    "x = []\nwhile len(x) < 2000: x.append(bytearray(1 << 20))",
    "import mmap\nx = []\nwhile len(x) < 2000:\n  x.append(mmap.mmap(-1, 1 << 20))\n"
    "  x[-1][:] = bytes(1 << 20)",
    "import sys\nsys.setrecursionlimit(3_000_000)\ndef f(): return f() + 1\nf()",
    "import os\nos.memfd_create('x')",
    "import zlib\nzlib.decompress(zlib.compress(bytes(1 << 27)) * 1, bufsize=1 << 40)",
    "10 ** 10 ** 10",
  ],
)
def test_memory(attack):
  before = _available()
  least = [before]
  watching = threading.Event()

  def watch():
    while not watching.wait(0.02):
      least.append(_available())

  watcher = threading.Thread(target=watch)
  watcher.start()
  outcome = run(attack)
  watching.set(), watcher.join()
  assert outcome.status != 0 and outcome.ended in ("exit", "cpu"), outcome
  assert before - min(least) < 1 << 30, "other tests may take some, too"


def _available() -> int:
  text = pathlib.Path("/proc/meminfo").read_text()
  return int(text.partition("MemAvailable:")[2].split()[0]) << 10


@pytest.mark.long
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_gigabyte_of_output(stream):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  outcome = run(f"""
    import os, sys
    for _ in range(1000):
      try:
        os.write(sys.{stream}.fileno(), b"x" * (1 << 20))
      except OSError:
        pass
    os.lseek(1, 1 << 40, 0)
    try:
      os.write(1, b"x")
    except OSError as error:
      os._exit(5)
  """)
  assert (outcome.status, outcome.ended) == (5, "output")
  assert len(outcome.stdout) + len(outcome.stderr) <= 2 * LIMITS.output_bytes
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


SECRET = "the-answer-is-7f3a"


def test_files_and_variables_of_the_machine_are_not_there(monkeypatch, tmp_path):
  (tmp_path / "answers.jsonl").write_text(SECRET)
  monkeypatch.setenv("API_KEY", SECRET)
  found = tries(f"""
    tried("answers", lambda: open({str(tmp_path / "answers.jsonl")!r}).read())
    tried("package", lambda: open({bubblewrap.__file__!r}).read())
    tried("passwd", lambda: open("/etc/passwd").read())
    tried("home", lambda: os.listdir(os.path.expanduser("~")))
    tried("environment", lambda: sorted(os.environ))
    tried("proc", lambda: os.listdir("/proc"))
    tried("sys", lambda: os.listdir("/sys"))
    tried("link", lambda: os.symlink("/etc/passwd", "/dev/link"))
    tried("hard", lambda: os.link("/main.py", "/more.py"))
    tried("parent", lambda: os.listdir("/../../.."))
    tried("offpolicy", lambda: __import__("offpolicy_rl"))
  """)
  missing = ("answers", "package", "passwd", "proc", "sys")
  assert {found[name] for name in missing} == {"FileNotFoundError"}
  assert found["offpolicy"] == "ModuleNotFoundError"
  assert "API_KEY" not in found["environment"] and "PYTHONPATH" not in found["environment"]
  assert {found["link"], found["hard"]} == {"OSError"}, "it can write nowhere"
  assert found["parent"] == found["home"] and "main.py" in found["parent"]


@pytest.mark.long
def test_no_file_that_it_can_read_has_the_secret(monkeypatch, tmp_path):
  """Also descriptors that this process has left open for those that it starts."""
  (tmp_path / "answers.jsonl").write_text(SECRET)
  monkeypatch.setenv("API_KEY", SECRET)
  with open(tmp_path / "answers.jsonl") as file:
    os.set_inheritable(file.fileno(), True)
    outcome = run(
      f"""
      import os, stat
      secret, files, found = {SECRET[::-1]!r}[::-1].encode(), 0, []
      for folder, _, names in os.walk("/"):
        for name in names:
          path = os.path.join(folder, name)
          try:
            if not stat.S_ISREG(os.stat(path).st_mode) or os.path.getsize(path) > 1 << 14:
              continue
            files += 1
            if secret in open(path, "rb").read():
              found.append(path)
          except OSError:
            pass
      for number in range(3, 2000):
        try:
          os.fstat(number)
          found.append(number)
        except OSError:
          pass
      print(files > 500, found, {SECRET!r} in str(os.environ))
    """,
      Limits(seconds=120.0, cpu_seconds=60.0),
    )
  assert outcome.stdout == "True ['/main.py'] False\n", outcome


def test_sockets():
  with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
    local.bind("\0offpolicy-rl-test-socket")
    local.listen()
    found = tries(f"""
      import socket
      tried("tcp", lambda: socket.create_connection(("127.0.0.1", {server.getsockname()[1]})))
      tried("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
      tried("unix", lambda: socket.socket(socket.AF_UNIX).connect("\\0offpolicy-rl-test-socket"))
      tried("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
      tried("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
      tried("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
      tried("x32", lambda: call(0x40000029, 2, 1, 0))
      tried("io_uring", lambda: call(425, 8, ctypes.create_string_buffer(120)))
      tried("names", lambda: socket.getaddrinfo("example.com", 80))
    """)
    assert found.pop("x32") == found.pop("io_uring").replace("EPERM", "ENOSYS") == "ENOSYS"
    assert found.pop("names") == "gaierror"
    assert set(found.values()) == {"PermissionError"}, found
    for listening in (server, local):
      listening.setblocking(False)
      with pytest.raises(BlockingIOError):
        listening.accept()


def test_a_network_namespace_of_its_own_stands_behind_the_filter(monkeypatch):
  with socket.create_server(("127.0.0.1", 0)) as server:
    monkeypatch.delitem(bubblewrap.seccomp.DENIED, "socket")
    port = server.getsockname()[1]
    outcome = run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2)")
  assert "ConnectionRefusedError" in outcome.stderr or "unreachable" in outcome.stderr, outcome


def test_signals_and_other_processes():
  with subprocess.Popen(["sleep", "60"]) as other:
    found = tries(f"""
      import signal
      tried("one", lambda: os.kill({other.pid}, 9))
      tried("starter", lambda: os.kill({os.getpid()}, 9))
      tried("all", lambda: os.kill(-1, 9))
      tried("group", lambda: os.killpg({os.getpgid(0)}, 9))
      tried("itself", lambda: os.kill(1, 9))
      tried("parent", os.getppid)
      tried("priority", lambda: os.setpriority(os.PRIO_PROCESS, {other.pid}, 19))
      tried("trace", lambda: call(101, 16, {other.pid}, 0, 0))
      tried("memory", lambda: call(310, {other.pid}, 0, 0, 0, 0, 0))
      tried("pidfd", lambda: call(434, {other.pid}, 0))
    """)
    assert other.poll() is None
    other.kill()
  gone = ("one", "starter", "all", "group", "priority")
  assert {found[name] for name in gone} == {"ProcessLookupError"}, found
  assert found["itself"] == "None" and found["parent"] == "0"
  assert {found[name] for name in ("trace", "memory", "pidfd")} == {"EPERM"}


def test_rights_namespaces_and_the_kernel():
  found = tries("""
    import resource
    tried("user", os.getuid)
    tried("no-new-privileges", lambda: libc.prctl(39, 0, 0, 0, 0))
    def capabilities():
      header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
      libc.capget(header, data)
      return sum(data)
    tried("capabilities", capabilities)
    tried("root", lambda: os.setuid(0))
    tried("unshare", lambda: call(272, 0x10000000))
    tried("mount", lambda: call(165, b"none", b"/dev", b"tmpfs", 0, 0))
    tried("chroot", lambda: os.chroot("/usr"))
    tried("keys", lambda: call(250, 0, -3, 0, 0, 0))
    tried("bpf", lambda: call(321, 0, 0, 0))
    tried("log", lambda: call(103, 3, ctypes.create_string_buffer(9), 9))
    tried("name", lambda: __import__("socket").sethostname("x"))
    tried("host", lambda: os.uname().nodename)
    tried("device", lambda: os.mknod("/dev/kmsg", 0o20600, os.makedev(1, 11)))
    tried("devices", lambda: sorted(os.listdir("/dev")))
    tried("more-time", lambda: resource.setrlimit(resource.RLIMIT_CPU, (100, 100)))
    tried("more-memory", lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)))
    tried("filter", lambda: libc.prctl(21, 0, 0, 0, 0))
  """)
  assert found == {
    "user": "65534",
    "no-new-privileges": "1",
    "capabilities": "0",
    "root": "OSError",  # there is no such user
    "unshare": "EPERM",
    "mount": "EPERM",
    "chroot": "PermissionError",
    "keys": "EPERM",
    "bpf": "EPERM",
    "log": "EPERM",
    "name": "PermissionError",
    "host": "sandbox",
    "device": "OSError",
    "devices": "['null', 'random', 'urandom', 'zero']",
    "more-time": "ValueError",
    "more-memory": "ValueError",
    "filter": "2",
  }


@pytest.mark.long
def test_filling_the_disk():
  found = tries("""
    writable = []
    for folder, _, names in os.walk("/"):
      for name in ("new", *names[:4]):
        path = os.path.join(folder, name)
        try:
          open(path, "r+b" if name in names else "wb").close()
          writable.append(path)
        except OSError:
          pass
    tried("writable", lambda: writable)
    tried("temporary", lambda: __import__("tempfile").mkstemp())
    tried("null", lambda: [open("/dev/null", "w").write("x" * 1000) for _ in range(9)] and "taken")
    tried("allocated", lambda: os.posix_fallocate(1, 0, 1 << 30))
    tried("longer", lambda: os.ftruncate(0, 1 << 40))
    tried("sparse", lambda: os.pwrite(0, b"x", 1 << 40))
  """)
  assert sorted(eval(found["writable"])) == [
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
  ]
  assert found["temporary"] == "FileNotFoundError" and found["null"] == "taken"
  assert {found[name] for name in ("allocated", "longer", "sparse")} == {"OSError"}


@pytest.mark.long
def test_leaving_processes_behind():
  """A daemon needs a fork, a thread ends with its process, another program is no other process."""
  begin = time.monotonic()
  outcome = run("""
    import atexit, os, signal, threading, time
    for number in range(1, 65):
      try:
        signal.signal(number, signal.SIG_IGN)
      except (OSError, ValueError):
        pass
    threading.Thread(target=time.sleep, args=(60,), daemon=False).start()
    atexit.register(time.sleep, 60)
    print("here", flush=True)
    os.execv("/prlimit", ["prlimit", "--help"])
  """)
  assert outcome.ended == "exit" and "here" in outcome.stdout
  waits = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
  assert run(waits, Limits(seconds=0.5)).ended == "seconds"
  assert time.monotonic() - begin < 30


# Should the sandbox ever fail here, the machine that tests it survives: a few processes, no bomb.
_FORKS = """
import os
for _ in range(100):
  try:
    if os.fork() == 0:
      os._exit(0)
  except OSError:
    pass
while True:
  pass
"""


@pytest.mark.long
def test_many_attacks_at_a_time_do_not_reach_an_honest_program():
  attacks = [
    _FORKS,
    "while True: pass",
    "x = []\nwhile len(x) < 1000: x.append(bytearray(1 << 20))",
    "import os\nfor _ in range(10_000): os.write(1, b'x' * (1 << 16))",
  ]
  limits = Limits(seconds=2.0, memory_mb=128)
  outcomes = {}

  def attacking(number: int):
    outcomes[number] = programs.run(attacks[number % len(attacks)], limits=limits)

  threads = [threading.Thread(target=attacking, args=(n,)) for n in range(8)]
  [t.start() for t in threads]
  honest = programs.run(Program("print(sum(range(1000)))"), limits=Limits(seconds=30.0))
  [t.join() for t in threads]
  assert honest == Outcome("499500\n", "", 0, "exit")
  assert len(outcomes) == 8 and all(outcome.status for outcome in outcomes.values())
  assert not here.processes()
