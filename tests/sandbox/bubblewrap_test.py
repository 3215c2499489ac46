"""What is bubblewrap's own: machines without it, what is left. The rest: programs_test.py."""

import errno
import os
import stat
import subprocess
import sys
import time

import pytest

from offpolicy_rl.sandbox import bubblewrap, outcomes, programs
from offpolicy_rl.sandbox.outcomes import Limits, Program
from tests.conftest import ROOT
from tests.sandbox import here
from tests.sandbox.programs_test import ECHO


@here.needs_sandbox
def test_a_program_sees_no_installed_packages_and_its_files_in_the_root():
  program = "try: import pip\nexcept ImportError as error: print(error, open('/more.txt').read())"
  assert programs.run(Program(program, {"more.txt": "more"})).stdout == (
    "No module named 'pip' more\n"
  )


@here.needs_sandbox
@pytest.mark.parametrize("broken", [0, 1])
def test_one_that_bwrap_can_not_start_is_no_fault_of_the_other(broken):
  """Else a machine that has no namespaces left for a moment would make right programs wrong."""
  talking = [Program("input()"), Program(ECHO)]
  talking[broken] = Program("", {"dev/null/x": ""})  # bwrap can't make that file
  with pytest.raises(outcomes.SandboxError, match="bwrap can't start a program here, got"):
    programs.converse(*talking)
  assert not here.processes()


@here.needs_sandbox
@pytest.mark.long
def test_nothing_is_left_open():
  programs.run("")
  before = sorted(os.listdir("/proc/self/fd"))
  for text in ("", "while 1: pass", "import os; os.abort()"):
    programs.run(text, limits=Limits(seconds=0.2))
  programs.converse(Program(""), Program(ECHO))
  assert sorted(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------- machines without a sandbox


@pytest.fixture
def without(monkeypatch):
  """A machine with no bwrap, as far as this process can tell."""

  def use(bwrap: str | None):
    monkeypatch.setattr(bubblewrap.importlib.util, "find_spec", lambda name: None)
    known = {"bwrap": bwrap, "prlimit": "/bin/true"}
    monkeypatch.setattr(bubblewrap.shutil, "which", known.get)
    bubblewrap._wrapping.cache_clear()
    bubblewrap.check.cache_clear()

  yield use
  bubblewrap._wrapping.cache_clear()
  bubblewrap.check.cache_clear()


def test_no_bwrap_is_refused_with_what_to_install(without):
  without(None)
  with pytest.raises(
    outcomes.SandboxError, match=r"no bwrap .* pip install offpolicy-rl\[sandbox\]"
  ):
    bubblewrap.check()
  with pytest.raises(outcomes.SandboxError, match="no bwrap"):
    programs.run("print(1)")


def test_another_machine_is_refused(without, monkeypatch):
  without("/bin/true")
  monkeypatch.setattr(bubblewrap.platform, "machine", lambda: "aarch64")
  with pytest.raises(outcomes.SandboxError, match="x86_64, this is linux, aarch64"):
    bubblewrap.check()


def test_a_kernel_without_what_we_wait_by_is_refused(without, monkeypatch):
  without("/bin/true")

  def missing(pid):
    raise OSError(errno.ENOSYS, "Function not implemented")

  monkeypatch.setattr(os, "pidfd_open", missing)
  with pytest.raises(outcomes.SandboxError, match=r"pidfd_open: .* Function not implemented"):
    bubblewrap.check()
  monkeypatch.delattr(os, "pidfd_open")
  with pytest.raises(outcomes.SandboxError, match=r"Linux 5.3 with pidfd_open: .*no attribute"):
    bubblewrap.check()


@here.needs_sandbox
def test_a_program_that_can_not_be_watched_is_ended(monkeypatch):
  bubblewrap.check()

  def full(pid):
    _wait_for(lambda: len(here.processes()) >= 2)  # bwrap and the program
    raise OSError(errno.EMFILE, "Too many open files")

  monkeypatch.setattr(os, "pidfd_open", full)
  with pytest.raises(OSError, match="Too many open files"):
    programs.run("import time; time.sleep(99)")
  monkeypatch.undo()
  _wait_for(lambda: not here.processes())


def test_a_bwrap_that_may_not_make_namespaces_is_refused(without, tmp_path):
  stand_in = tmp_path / "bwrap"
  stand_in.write_text(
    "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
  )
  stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
  without(str(stand_in))
  with pytest.raises(outcomes.SandboxError, match="No permissions to create new namespace"):
    bubblewrap.check()
  ran = tmp_path / "ran"
  with pytest.raises(outcomes.SandboxError):
    programs.run(f"open({str(ran)!r}, 'w')")
  assert not ran.exists(), "a program was run bare"


@here.needs_sandbox
def test_a_program_can_not_look_like_a_missing_sandbox():
  """That would count as a failure of the verifier, not as a wrong answer."""
  text = (
    "import sys, os\nsys.stderr.write('bwrap: No permissions')\nsys.stderr.flush()\nos._exit(1)"
  )
  assert programs.run(text).status == 1


@here.needs_sandbox
@pytest.mark.long
def test_a_program_ends_with_the_process_that_runs_it():
  code = "from offpolicy_rl.sandbox import programs\nprograms.run('import time; time.sleep(99)')"
  runner = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
  _wait_for(lambda: len(here.processes()) >= 2)
  runner.kill()
  runner.wait()
  _wait_for(lambda: not here.processes())


def _wait_for(condition, seconds=20.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)
