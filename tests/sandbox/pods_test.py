"""What is the pods' own: claims, pods that are open or broken, clusters that refuse.

The cluster is a stand-in (cluster.py), its client agent-sandbox's own. What programs may do, and
how they end, is in programs_test.py.
"""

import os
import sys
import time

import pytest

from offpolicy_rl.environments import python
from offpolicy_rl.sandbox import in_pod, pods, programs
from offpolicy_rl.sandbox.outcomes import Limits, Outcome, Program, SandboxError
from offpolicy_rl.tasks import code, scoring
from tests.sandbox import here

pytestmark = here.needs_sandbox


@pytest.fixture(autouse=True)
def use_pods(cluster, monkeypatch):
  monkeypatch.setenv(pods.WHERE, "pods:agents/pool")
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
  with pytest.raises(SandboxError, match=r"reaches 127.77.0.2:9090, .*expected none: its"):
    programs.check()
  with pytest.raises(ValueError, match="verifier: got offpolicy_rl.tasks.code:code: OFFPOLICY_RL"):
    scoring.require("offpolicy_rl.tasks.code:code")


def test_pods_where_programs_are_not_kept_apart_are_refused(monkeypatch):
  monkeypatch.setattr(pods.seccomp, "program", lambda: b"\x06\0\0\0\0\0\xff\x7f")  # allow all
  with pytest.raises(SandboxError, match=r"does not hold in pods .* \[True, True, False\]"):
    programs.check()


@pytest.mark.parametrize("where", ["pods", "pods:pool", "pods:/pool", "pods:a/b/c", "docker"])
def test_no_such_place_is_refused(monkeypatch, where):
  monkeypatch.setenv(pods.WHERE, where)
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


def test_a_pod_that_comes_too_late_is_no_fault_of_the_program(cluster):
  cluster.seconds = 2.0
  with pytest.raises(SandboxError):
    programs.run("print(1)", limits=Limits(seconds=1.0))


@pytest.mark.parametrize("which", [0, 1])
def test_a_pod_that_goes_is_no_fault_of_the_program(cluster, monkeypatch, which):
  """As when its machine is preempted: also that of the program that answers."""
  begun = pods._Running._said

  def lose(running):
    lost = list(cluster.pods.values())[which]
    if running._service is not None and not lost.is_lost:
      lost.lose()
    yield from begun(running)

  monkeypatch.setattr(pods._Running, "_said", lose)
  with pytest.raises(SandboxError, match="a pod of agents/pool is gone"):
    programs.converse(Program("input()"), Program("input()"))


def test_a_program_that_ends_its_launcher_is_wrong():
  outcome = programs.run("import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(60)")
  assert outcome.ended == "exit" and outcome.status


def test_a_program_can_not_look_like_a_missing_sandbox():
  for status in (in_pod.CPU_USED_UP, in_pod.TOO_MANY_THREADS, 255):
    outcome = programs.run(f"import os\nos._exit({status})")
    assert outcome.status, "wrong, and no failure of the verifier"


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


def test_the_tool_runs_in_pods(cluster):
  assert python.python("print(6 * 7)") == "42"
  assert "PermissionError" in python.python("import socket; socket.socket()")
  assert cluster.claimed == 2 and os.environ[pods.WHERE]
