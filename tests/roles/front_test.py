"""The front desk at the end of a run."""

import time

from offpolicy_rl.replay.lag import LagControl
from offpolicy_rl.replay.ledger import Ledger
from offpolicy_rl.roles.front import Front


def front() -> Front:
  return Front(
    book=Ledger(10), groups=None, weights=None, vocab_size=9, max_tokens=9,
    control=LagControl("async", 1),
  )  # fmt: skip


def test_a_sampler_that_only_beats_does_not_keep_the_learner_from_ending():
  desk = front()
  desk.join("hung")
  start = time.monotonic()
  desk.dismiss(silent_seconds=60, at_most_seconds=0.3)
  assert 0.3 <= time.monotonic() - start < 5


def test_nobody_is_waited_for_who_has_left_or_fell_silent():
  desk = front()
  desk.join("gone")
  desk.leave("gone")
  desk.join("silent")
  start = time.monotonic()
  desk.dismiss(silent_seconds=0.2, at_most_seconds=60)
  assert time.monotonic() - start < 5 and desk.finished
