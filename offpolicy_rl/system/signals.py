"""Requests to end: signals, and the end of this process."""

import contextlib
import math
import os
import queue
import signal
import threading
import time

from offpolicy_rl.system import children, output

INTERRUPTED = 130  # exit code, as shells have it
_ONE_REQUEST_SECONDS = 0.5  # signals that come together


def interrupt_like_ctrl_c() -> None:
  """Makes SIGTERM and SIGHUP raise KeyboardInterrupt, so that partial directories are removed."""
  for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_DFL:
      with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(number, signal.default_int_handler)


def stop_event(stop: threading.Event | None = None) -> threading.Event:
  """An event that SIGINT, SIGTERM or SIGHUP (the terminal was closed) sets; the next one kills us.

  Shells and schedulers send several signals for one request: those of one moment count as one, and
  a second SIGHUP never kills.
  """
  stop = stop or threading.Event()
  first = math.inf  # time of the first one
  # The handler interrupts the main thread anywhere, also where it holds the event's lock. Setting
  # the event there would wait for that lock for ever.
  requests: queue.SimpleQueue[None] = queue.SimpleQueue()
  set_on_request = lambda: (requests.get(), stop.set())
  threading.Thread(target=set_on_request, daemon=True, name="signals").start()

  def handle(number, _):
    nonlocal first
    now = time.monotonic()
    first = min(first, now)
    if number != signal.SIGHUP and now - first > _ONE_REQUEST_SECONDS:
      children.kill_all()
      exit_now(INTERRUPTED)
    requests.put(None)

  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
      signal.signal(number, handle)
  return stop


def exit_now(code: int) -> None:
  """Ends the process at once, after writing printed output."""
  output.drain()
  os._exit(code)
