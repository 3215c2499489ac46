"""What set-up shows of pip: on a terminal a line that changes, elsewhere plain lines."""

import os
import pty
import subprocess
import sys

from tests.launch.desk import LAUNCH

PIP = """
import os, pathlib, sys, time
folder = pathlib.Path(os.environ["TMPDIR"]) / "pip-unpack-1"
folder.mkdir()
print("  Downloading jax-0.12.0-py3-none-any.whl.metadata (13 kB)")
print("Downloading jax-0.12.0-py3-none-any.whl (3.1 MB)")
print("Downloading tensorflow-2.21.0-cp312-cp312-manylinux_2_17_x86_64.whl (60.4 MB)")
(folder / "tensorflow.whl").write_bytes(bytes(30_200_000))
time.sleep(1)
print("  Building wheel for pycosat (pyproject.toml): started")
print("Installing collected packages: jax, tensorflow, pycosat")
print("ERROR: no space left")
sys.exit(int(sys.argv[1]))
"""
COMMAND = [sys.executable, LAUNCH / "show_pip.py", sys.executable, "-c", PIP]
LINES = [
  "fetching tensorflow 2.21.0, 60 MB",
  "unpacking 3 packages; 2 files (64 MB) were fetched",
  "ERROR: no space left",
]


def test_without_a_terminal_there_are_plain_lines():
  done = subprocess.run([*COMMAND, "0"], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "") and done.stdout.splitlines() == LINES


def test_a_failure_is_passed_on_with_what_pip_said():
  done = subprocess.run([*COMMAND, "3"], capture_output=True, text=True)
  assert done.returncode == 3 and "Building wheel for pycosat" in done.stderr


def test_on_a_terminal_a_bar_shows_what_is_being_fetched():
  reader, writer = pty.openpty()
  with subprocess.Popen([*COMMAND, "0"], stdout=writer) as done:
    os.close(writer)
    seen = b""
    while chunk := _read(reader):
      seen += chunk
  os.close(reader)
  assert done.returncode == 0
  frames = seen.decode().replace("\n", "").split("\r\x1b[K")
  assert any("tensorflow 2.21.0 [############------------] 60 MB" in frame for frame in frames)
  kept = [frame.strip("\r") for frame in frames]
  assert [line for line in kept if line in LINES] == LINES and kept[-1] == ""


def _read(descriptor: int) -> bytes:
  try:
    return os.read(descriptor, 4096)
  except OSError:  # the other side is closed
    return b""
