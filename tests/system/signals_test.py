"""Signals that ask a process to end."""

import subprocess
import sys

import pytest

_INSIDE_OF_A_WAIT = """
import signal
from offpolicy_rl.system import signals

stop = signals.stop_event()
with stop._cond:  # as the main thread has it at the beginning and the end of `stop.wait`
  signal.raise_signal(signal.{first})
  signal.raise_signal(signal.{second})  # shells send several at once
print(stop.wait(30))
"""


@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGHUP"), ("SIGINT", "SIGTERM")])
def test_a_signal_that_interrupts_a_wait_for_it_is_heard(first, second):
  program = _INSIDE_OF_A_WAIT.format(first=first, second=second)
  ended = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False
  )
  assert (ended.returncode, ended.stdout) == (0, "True\n"), ended.stderr
