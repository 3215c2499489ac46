"""launch/install.sh finds a Python or says what to install."""

import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

INSTALL = ROOT / "launch" / "install.sh"


def install(tmp_path, *flags, **env):
  bin_dir = tmp_path / "bin"
  bin_dir.mkdir(exist_ok=True)
  for tool in ("bash", "env"):
    if not (bin_dir / tool).exists():
      (bin_dir / tool).symlink_to(shutil.which(tool))
  base = {"PATH": str(bin_dir), "HOME": str(tmp_path)}
  return subprocess.run(
    [shutil.which("bash"), str(INSTALL), *flags, str(tmp_path / "venv"), "gym"],
    env=base | env,
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )


def test_no_python_is_explained(tmp_path):
  done = install(tmp_path)
  assert done.returncode != 0
  assert "needs Python >= 3.12 and found none" in done.stderr and "apt-get install" in done.stderr


def test_a_named_python_that_does_not_serve_is_named(tmp_path):
  old = tmp_path / "old-python"
  old.write_text("#!/usr/bin/env bash\nexit 1\n")
  old.chmod(0o755)
  done = install(tmp_path, PYTHON=str(old))
  assert done.returncode != 0 and f"PYTHON={old} is no Python >= 3.12" in done.stderr


def interpreter(path):
  """An interpreter that makes a venv without pip, which is what takes long."""
  path.parent.mkdir(parents=True)
  path.write_text(f"""#!/usr/bin/env bash
[[ $2 = *"print(sys.executable)" ]] && echo "$0" && exit
[ "$1 $2" = "-m venv" ] && set -- -m venv --without-pip "${{@:3}}"
exec {sys.executable} "$@"
""")
  path.chmod(0o755)


@pytest.mark.parametrize("name", ["python3.12", "python3.13", "python3"])
def test_interpreters_on_the_path_are_found(tmp_path, name):
  """Stops at pip, which has no project here: the interpreter was found and the venv made."""
  interpreter(tmp_path / "bin" / name)
  done = install(tmp_path)
  assert f"Making {tmp_path}/venv with" in done.stdout
  assert (tmp_path / "venv" / "bin" / "python").exists()


def test_pyenv_versions_are_found(tmp_path):
  interpreter(tmp_path / "pyenv" / "versions" / "3.12.9" / "bin" / "python")
  done = install(tmp_path, PYENV_ROOT=str(tmp_path / "pyenv"))
  assert f"Making {tmp_path}/venv with" in done.stdout


def test_an_older_machine_gets_one_by_uv(tmp_path):
  """The machine's python3 only knows how to install uv."""
  (tmp_path / "bin").mkdir()
  interpreter(tmp_path / "kept" / "python3.12")
  uv = f'[ "$*" = "python install 3.12" ] && cp {tmp_path}/kept/python3.12 {tmp_path}/.local/bin/'
  scripts = {"bin/python3": "[ $2 = pip ]", ".local/bin/uv": uv}
  for name, text in scripts.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (tmp_path / name).chmod(0o755)
  (tmp_path / "bin" / "cp").symlink_to(shutil.which("cp"))
  done = install(tmp_path, "--get-python")
  assert f"Making {tmp_path}/venv with {tmp_path}/.local/bin/python3.12" in done.stdout
