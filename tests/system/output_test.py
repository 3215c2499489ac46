"""Printing can't stop, hang or change a run, whatever its output goes to."""

import io
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from offpolicy_rl.observe import terminal
from offpolicy_rl.sweep import screen
from tests.conftest import ROOT

BEGIN = (
  "import sys; from offpolicy_rl.system import output; output.guard(); output.in_background()\n"
)
# Works, and says so in a file; what it prints comes from Python, from rich, and from a C library.
WORK = """
import logging, os, pathlib, warnings
logging.basicConfig()
for i in range(int(sys.argv[2])):
  print(f"line {i} \\N{BOX DRAWINGS LIGHT HORIZONTAL}", "x" * 100, flush=True)
  output.console().print("[/red] \\N{PLUS-MINUS SIGN} :smile:")
  logging.error("line %d \\N{BOX DRAWINGS LIGHT HORIZONTAL}", i)
  warnings.warn(f"line {i}")
  os.write(2, b"from C\\n") if i % 100 == 99 else None
pathlib.Path(sys.argv[1]).write_text("done")
"""


def run(tmp_path, *, begin=BEGIN, lines=50, **options) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-c", begin + WORK, str(tmp_path / "done"), str(lines)], cwd=ROOT, **options
  )


def finished(process, tmp_path) -> bool:
  code = process.wait(60)
  return code == 0 and (tmp_path / "done").read_text() == "done"


def test_a_reader_that_is_gone(tmp_path):
  process = run(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  process.stdout.close()
  assert finished(process, tmp_path)


def test_a_terminal_that_is_gone(tmp_path):
  ours, theirs = os.openpty()
  process = run(tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
  os.close(theirs)
  os.close(ours)
  assert finished(process, tmp_path)


def test_a_full_disk(tmp_path):
  with pathlib.Path("/dev/full").open("wb") as full:
    assert finished(run(tmp_path, stdout=full, stderr=full), tmp_path)


def test_a_reader_that_does_not_read_keeps_nobody_waiting(tmp_path):
  """More than a pipe and the queue hold; then it is read, and says what is missing."""
  process = run(tmp_path, lines=8000, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  deadline = time.monotonic() + 60
  while not (tmp_path / "done").exists():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  text = process.stdout.read().decode()
  assert process.wait(60) == 0
  ours = text.replace("from C\n", "")  # written beside the queue, so perhaps before the first line
  assert ours.startswith("line 0 ") and "lines are missing here" in ours


def test_all_is_delivered_to_a_slow_reader(tmp_path):
  process = run(tmp_path, lines=3000, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
  time.sleep(1.0)
  lines = process.stdout.read().decode().splitlines()
  assert finished(process, tmp_path)
  assert [line.split()[1] for line in lines[::2]] == [str(i) for i in range(3000)]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_were_closed_before(tmp_path, closed):
  """A file that is opened then must not become standard output."""
  victim = tmp_path / "victim"
  begin = BEGIN + f"file = open({str(victim)!r}, 'w')\n"
  command = [sys.executable, "-c", begin + WORK, str(tmp_path / "done"), "3"]
  shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
  process = subprocess.Popen(shell, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  process.communicate(timeout=60)
  assert finished(process, tmp_path) and victim.read_text() == ""


@pytest.mark.parametrize(
  "environment",
  [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"TERM": "dumb"},
  ],
)
def test_a_terminal_that_knows_less(tmp_path, environment):
  process = run(
    tmp_path, lines=1, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environment
  )
  out, err = process.communicate(timeout=60)
  assert finished(process, tmp_path)
  assert b"[/red]" in out and b":smile:" in out and b"line 0" in err


def test_a_command_that_only_shows_ends_with_its_reader(tmp_path):
  begin = BEGIN.replace("in_background", "strict")
  process = run(tmp_path, begin=begin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  process.stdout.close()
  assert b"BrokenPipeError" in process.communicate(timeout=60)[1]
  assert process.returncode == 1 and not (tmp_path / "done").exists()


def test_what_could_not_be_written_is_known(tmp_path):
  begin = "import sys; from offpolicy_rl.system import output; output.guard()\n"
  code = begin + "print('x', flush=True); print(output.problem(), file=sys.stderr)"
  with pathlib.Path("/dev/full").open("wb") as full:
    process = subprocess.run(
      [sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, timeout=60
    )
  assert process.returncode == 0 and b"No space left" in process.stderr


PRINTS = ("sweep", "--config=configs/test.py", "--sweep=configs/sweeps/tiny.py", "--print")


def test_a_command_whose_output_is_its_result_fails_with_it():
  with pathlib.Path("/dev/full").open("wb") as full:
    process = subprocess.run(
      [sys.executable, "-m", "offpolicy_rl.cli.main", *PRINTS],
      cwd=ROOT,
      stdout=full,
      stderr=subprocess.PIPE,
      timeout=60,
    )
  assert process.returncode == 1
  assert process.stderr.decode().splitlines() == [
    "offpolicy-rl sweep: standard output: [Errno 28] No space left on device"
  ]


@pytest.mark.parametrize("make", [lambda c: terminal.Progress(3, c), lambda c: screen.Screen(1, c)])
def test_a_path_is_no_markup(make):
  text = io.StringIO()
  make(Console(file=text, width=200)).say("run directory a[/red]b [bold]c :smile: d")
  assert text.getvalue() == "run directory a[/red]b [bold]c :smile: d\n"


def test_every_console_prints_text_as_it_is():
  """Others take brackets in formulas and paths for markup, and leave them out."""
  files = (ROOT / "offpolicy_rl").rglob("*.py")
  made = [path.name for path in files if re.search(r"\bConsole\(", path.read_text())]
  assert made == ["output.py"]


def test_a_reader_that_has_seen_enough_is_no_news():
  """Of `explain | head -3`: no line about it, as of any tool."""
  process = subprocess.Popen(
    [sys.executable, "-m", "offpolicy_rl.cli.main", "explain"],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  process.stdout.close()
  process.stdout = None
  assert process.communicate(timeout=60)[1] == b"" and process.returncode == 1
