"""Where the launch scripts run in tests: a PATH with a few harmless tools and with stand-ins.

No cloud and no cluster is involved. The stand-ins know the commands and flags that the scripts use,
read in the tools' own help (gcloud 528, kubectl 1.32, Slurm's manual pages), and refuse others.
"""

import json
import pathlib
import shutil
import subprocess
import sys

from offpolicy_rl.cli import flags
from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
_STUB = pathlib.Path(__file__).parent / "stub.py"
_TOOLS = (
  "bash",
  "basename",
  "cat",
  "chmod",
  "dirname",
  "env",
  "git",
  "gzip",
  "head",
  "id",
  "ln",
  "mkdir",
  "openssl",
  "rm",
  "sed",
  "sleep",
  "tar",
)


class Desk:
  """The PATH, and what was called on it."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    folder.mkdir()
    for tool in _TOOLS:
      self.link(tool)

  def link(self, tool: str) -> None:
    """Puts a tool of this machine there."""
    (self.folder / tool).symlink_to(shutil.which(tool))

  def stub(self, name: str, commands: dict, answers: dict | None = None) -> None:
    """Puts a stand-in there; see stub.py."""
    program = self.folder / name
    program.write_text(f"#!{sys.executable} -IS\n{_STUB.read_text()}")
    program.chmod(0o755)
    told = {"commands": commands, "answers": answers or {}}
    program.with_suffix(".json").write_text(json.dumps(told))

  def calls(self, name: str) -> list[dict]:
    """Every call of a stand-in, oldest first."""
    file = self.folder / f"{name}.calls"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

  def argvs(self, name: str) -> list[list[str]]:
    """The arguments of every call of a stand-in, oldest first."""
    return [call["argv"] for call in self.calls(name)]

  def run(self, script, *arguments, cwd=ROOT, **env) -> subprocess.CompletedProcess:
    """Runs a script (below launch/, or any path) with this PATH and no other environment."""
    return subprocess.run(
      [LAUNCH / script, *arguments],
      cwd=cwd,
      env={"PATH": str(self.folder)} | env,
      capture_output=True,
      text=True,
      timeout=60,
    )


def accepted(words: list[str]):
  """What `offpolicy-rl` itself reads from these arguments; it refuses unknown ones."""
  return flags.parser("").parse_args([w for w in words if not w.startswith("--config.")])


def ok(done: subprocess.CompletedProcess) -> str:
  """The output of a script that went well."""
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout
