"""All scripts of launch/: clean, and they explain themselves."""

import pathlib
import re
import subprocess
import sys

import pytest

from tests.launch.desk import LAUNCH, ok

SCRIPTS = [*sorted(LAUNCH.rglob("*.sh"))]
EXPLAINED = [str(script.relative_to(LAUNCH)) for script in SCRIPTS]


@pytest.mark.parametrize(
  "command",
  [
    ["shellcheck", "--external-sources", *SCRIPTS, LAUNCH / "tpu_hosts.bash"],
    ["hadolint", LAUNCH / "Dockerfile"],
  ],
  ids=lambda c: c[0],
)
def test_linters_have_nothing_to_say(command):
  program = pathlib.Path(sys.executable).with_name(command[0])  # as the extra `test` installs it
  done = subprocess.run([program, *command[1:]], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_stop_at_the_first_error():
  for script in SCRIPTS:
    assert "\nset -euo pipefail\n" in script.read_text(), script


def test_the_frozen_api_is_for_what_has_no_other():
  """The Cloud TPU API gets no new TPUs, XPK gave way to Cluster Toolkit, TPU nodes are gone."""
  gone = re.compile(r"compute tpus|\bxpk\b|tpu_vm: *false", re.IGNORECASE)
  files = [*SCRIPTS, *LAUNCH.rglob("*.yaml"), *LAUNCH.rglob("*.py"), LAUNCH / "tpu_hosts.bash"]
  using = [file.name for file in files if any(gone.search(line) for line in code(file))]
  assert using == ["tpu_vm.sh"]
  assert "That API is frozen" in (LAUNCH / "tpu_vm.sh").read_text()


def code(file: pathlib.Path) -> list[str]:
  """The lines of a file that are no comments."""
  return [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]


@pytest.mark.parametrize("script", EXPLAINED)
def test_help_is_the_comment_at_the_top(desk, script):
  text = ok(desk.run(script, "--help"))
  assert re.match(rf"(sbatch .*launch/)?{pathlib.Path(script).name} ", text), text
  comment = (LAUNCH / script).read_text().split("\nset -euo pipefail")[0].splitlines()
  assert text.splitlines()[-1] == comment[-1].removeprefix("# "), "all of it"


def test_the_image_has_no_keys_and_no_root():
  dockerfile = (LAUNCH / "Dockerfile").read_text()
  assert "\nARG RUN_AS=1000:1000\n" in dockerfile and "\nUSER $RUN_AS\n" in dockerfile
  assert 'ENTRYPOINT ["offpolicy-rl"]' in dockerfile
  kept = [line for line in (LAUNCH.parent / ".dockerignore").read_text().splitlines() if line]
  assert kept[1] == "*", "everything is left out but"
  copied = re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE)
  assert {f"!{name}" for line in copied for name in line.split()} == {
    line for line in kept if line.startswith("!")
  }
