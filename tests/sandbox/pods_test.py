"""What is the pods' own: claims, pods that are open or broken, clusters that refuse.

The cluster is a stand-in (cluster.py), its client agent-sandbox's own. What programs may do, and
how they end, is in programs_test.py.
"""

import json
import os
import signal
import sys
import time

import pytest

from offpolicy_rl.environments import calls, python
from offpolicy_rl.sandbox import in_pod, outcomes, pods, programs
from offpolicy_rl.sandbox.outcomes import Limits, Outcome, Program, SandboxError
from offpolicy_rl.tasks import code, scoring
from tests.sandbox import here

pytestmark = here.needs_sandbox


@pytest.fixture(autouse=True)
def use_pods(cluster, monkeypatch):
  monkeypatch.setenv(outcomes.WHERE, "pods:agents/pool")
  yield
  assert not cluster.pods, "a pod is left"


def test_a_closed_pool_is_found_good_once(cluster):
  programs.check()
  assert cluster.claimed == len(cluster.deleted) == 2
  programs.check()
  scoring.require("offpolicy_rl.tasks.code:code")
  assert cluster.claimed == 2


def test_every_program_has_a_pod_of_its_own(cluster):
  look = "import os; print(os.listdir('.'))"
  outcomes = [programs.run(Program(look, {f"{n}.txt": ""})) for n in range(2)]
  assert [sorted(eval(o.stdout)) for o in outcomes] == [["0.txt", "main.py"], ["1.txt", "main.py"]]
  assert cluster.claimed == len(cluster.deleted) == 2


def test_pods_with_a_network_are_refused(cluster):
  cluster.network = True
  with pytest.raises(SandboxError, match=r"reaches .*127.*.2:9090.*, expected none: its"):
    programs.check()
  with pytest.raises(ValueError, match="verifier: got offpolicy_rl.tasks.code:code: OFFPOLICY_RL"):
    scoring.require("offpolicy_rl.tasks.code:code")


def test_a_look_that_fails_is_no_look(monkeypatch):
  monkeypatch.setattr(pods, "_PROBE", "1 / 0")
  with pytest.raises(SandboxError, match="can't be looked at: .*ZeroDivisionError"):
    programs.check()


def test_pods_where_programs_are_not_kept_apart_are_refused(monkeypatch):
  monkeypatch.setattr(pods.seccomp, "pod_program", lambda: b"\x06\0\0\0\0\0\xff\x7f")  # allow all
  with pytest.raises(SandboxError, match="does not hold in pods .*fork socket file link signal"):
    programs.check()


@pytest.mark.parametrize("where", ["pods", "pods:pool", "pods:/pool", "pods:a/b/c", "docker"])
def test_no_such_place_is_refused(monkeypatch, where):
  monkeypatch.setenv(outcomes.WHERE, where)
  with pytest.raises(SandboxError, match=f"OFFPOLICY_RL_SANDBOX: got '{where}', expected pods:"):
    programs.check()


def test_no_such_pool_is_refused(cluster):
  cluster.pools.clear()
  with pytest.raises(SandboxError, match="no pod of agents/pool: .* does not exist: no pool"):
    programs.run("print(1)")
  assert len(cluster.deleted) == 1


def test_no_cluster_is_refused(cluster):
  cluster.kubeconfig.unlink()
  with pytest.raises(SandboxError, match="no pod of agents/pool: Invalid kube-config file"):
    programs.check()


def test_no_package_is_refused_with_what_to_install(monkeypatch):
  pods._stubs.cache_clear()
  for name in list(sys.modules):
    if name.startswith("k8s_agent_sandbox.commands"):
      monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, "k8s_agent_sandbox.commands", None)
  with pytest.raises(SandboxError, match=r"pip install offpolicy-rl\[pods\]"):
    programs.check()
  pods._stubs.cache_clear()


def test_an_image_without_python_is_no_fault_of_the_program(cluster):
  cluster.python = "python4"
  with pytest.raises(SandboxError, match="no pod of agents/pool: python3: executable file not"):
    programs.run("print(1)")


def test_another_processor_is_no_fault_of_the_program(monkeypatch):
  monkeypatch.setattr(pods.seccomp, "MACHINE", "aarch64")
  with pytest.raises(SandboxError, match="got 'the sandbox needs pods on aarch64, this one is on"):
    programs.run("print(1)")


def test_a_pod_that_comes_late_is_no_fault_of_the_program(cluster, monkeypatch):
  cluster.seconds = 2.0
  assert programs.run("print(1)", limits=Limits(seconds=1.5)).stdout == "1\n"
  monkeypatch.setattr(pods, "_CLAIM_SECONDS", 1.0)
  with pytest.raises(SandboxError, match="no pod of agents/pool: the cluster has not answered"):
    programs.run("print(1)")
  time.sleep(2.0)  # until that claim, too, has its pod


def test_an_outcome_does_not_wait_for_the_end_of_its_pod(cluster):
  cluster.delete_seconds = 4.0
  start = time.monotonic()
  assert programs.run("print(1)").stdout == "1\n"
  assert time.monotonic() - start < 4.0
  while cluster.pods:
    time.sleep(0.1)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
  "how", ["lose", "kill", "drain", pytest.param("go_silent", marks=pytest.mark.long)]
)
def test_a_pod_that_goes_is_no_fault_of_the_program(cluster, monkeypatch, which, how):
  """As when its machine is preempted: also that of the program that answers."""
  handed_on = []

  def go(running, data):
    handed_on.append(data)
    if len(handed_on) == 3:  # both have begun
      getattr(list(cluster.pods.values())[which], how)()
    write(running, data)

  write = pods._Running.write
  monkeypatch.setattr(pods._Running, "write", go)
  start = time.monotonic()
  asks = Program("print(1, flush=True)\ninput()\ninput()")
  with pytest.raises(SandboxError, match="a pod of agents/pool (is gone|can't start)"):
    programs.converse(asks, Program("print(input(), flush=True)\ninput()"), Limits(seconds=8.0))
  assert how == "go_silent" or time.monotonic() - start < 6.0


def test_a_program_can_not_reach_its_launcher():
  """Else a wrong answer could become a failed verification."""
  tries = """
import os, resource, signal
def tried(name, call, *arguments):
  try:
    call(*arguments)
    print(name)
  except PermissionError:
    pass
parent = os.getppid()
tried("kill", os.kill, parent, 15), tried("all", os.kill, -1, 15), tried("group", os.kill, 0, 15)
tried("limit", resource.prlimit, parent, resource.RLIMIT_CPU, (0, 0))
tried("affinity", os.sched_setaffinity, parent, {0})
tried("memory", open, f"/proc/{parent}/mem", "r+b")
tried("score", open, f"/proc/{parent}/oom_score_adj", "w")
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
os.sched_getaffinity(0)
signal.raise_signal(signal.SIGUSR1)
"""
  outcome = programs.run(tries)
  assert outcome == Outcome("", "", 128 + signal.SIGUSR1, "exit"), "what is its own it may do"


def test_a_program_leaves_nothing_in_its_pod():
  tries = """
import os
for call in (
  lambda: open("new", "w"), lambda: os.mkdir("new"), lambda: os.symlink("a", "new"),
  lambda: os.link("main.py", "new"), lambda: os.mknod("new"), lambda: os.rename("main.py", "new"),
  lambda: os.setxattr("main.py", "user.a", b"a"), lambda: os.truncate("main.py", 0),
  lambda: open("main.py", "r+"), lambda: open("/dev/shm/new", "w"),
):
  try:
    call()
    print("made")
  except PermissionError:
    pass
print(sorted(os.listdir()))
"""
  assert programs.run(tries) == Outcome("['main.py']\n", "", 0, "exit")


def test_a_program_can_not_look_like_a_missing_sandbox():
  for status in (*in_pod.ENDS, 255):
    outcome = programs.run(f"import os\nos._exit({status})")
    assert outcome.ended == "exit" and outcome.status, "wrong, and no failure of the verifier"


def test_what_is_printed_first_may_be_any_byte():
  printed = (in_pod.BEGUN * 2).decode()
  assert programs.run(f"print({printed!r})") == Outcome(printed + "\n", "", 0, "exit")


def test_it_takes_no_longer_than_its_pods_need():
  """A program that reads nothing holds up nobody who writes to it."""
  start = time.monotonic()
  floods = Program("while True: print('x' * 1000)")
  sleeps = Program("import time; time.sleep(99)")
  assert programs.converse(floods, sleeps, Limits(seconds=4.0)).ended == "seconds"
  assert time.monotonic() - start < 15


RIGHT = "```python\ndef add(a, b):\n  return a + b\n```"
TESTS = ('{"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"}', '["assert add(1, 2) == 3"]')


def test_the_cases_of_a_completion_share_a_pod(cluster):
  cases = {"inputs": ["1 2", "3 4", "5 6"], "outputs": ["3", "7", "11"]}
  assert code.code("print(sum(map(int, input().split())))", json.dumps(cases)) == 1.0
  assert cluster.claimed == len(cluster.deleted) == 1


def test_no_proxy_is_asked_for_a_pod(monkeypatch):
  for name in ("http_proxy", "https_proxy", "grpc_proxy"):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
  monkeypatch.setenv("no_proxy", "127.0.0.1")  # of the cluster's API
  assert programs.run("print(1)").stdout == "1\n"


@pytest.mark.parametrize("tests", TESTS)
def test_tests_judge_programs_in_pods(cluster, tests):
  assert code.code(RIGHT, tests) == 1.0
  assert code.code(RIGHT.replace("+", "-"), tests) == 0.0
  assert cluster.claimed == (4 if "assert" in tests else 2)


@pytest.mark.long
def test_verifiers_in_their_processes_claim_pods(cluster, monkeypatch):
  """With the limits that they have by default."""
  monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
  answers = [RIGHT, RIGHT.replace("+", "-"), RIGHT]
  name = "offpolicy_rl.tasks.code:code"
  with scoring.Scorer(name, workers=2, time_limit=60, memory_mb=4096) as scorer:
    for tests in TESTS:
      found = scorer.judgements(scorer.submit(answers, tests))
      assert [one.reward for one in found] == [1.0, 0.0, 1.0]
      assert not any(one.failed for one in found)


def test_the_policy_is_not_told_of_a_pool_that_is_not_there(cluster):
  """Its episode fails, and counts as failed."""
  cluster.pools.clear()
  made = python.Python()
  made.reset("7", seed=0)
  with pytest.raises(SandboxError, match="no pool"):
    made._result(calls.Call("python", {"program": "print(1)"}))


def test_the_tool_runs_in_pods(cluster):
  assert python.python("print(6 * 7)") == "42"
  assert "PermissionError" in python.python("import socket; socket.socket()")
  assert cluster.claimed == 2 and os.environ[outcomes.WHERE]
