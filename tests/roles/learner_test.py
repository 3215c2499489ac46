"""The learner role's own decisions."""

import threading
import types

import pytest

from offpolicy_rl.learner import loop
from offpolicy_rl.replay.lag import LagControl
from offpolicy_rl.roles import assembly


def test_a_learner_that_never_has_to_wait_still_hears_that_it_is_to_stop():
  """With quick samplers the next step's groups are always there."""
  stop = threading.Event()
  stop.set()
  always = types.SimpleNamespace(take=lambda ids, timeout: pytest.fail("another batch was taken"))
  records = types.SimpleNamespace(consumed=lambda *_, **__: pytest.fail("a step was booked"))
  me = types.SimpleNamespace(
    config=types.SimpleNamespace(learner=types.SimpleNamespace(prompts_per_step=2)),
    front=types.SimpleNamespace(book=always, control=LagControl("async", 1)),
    choices=types.SimpleNamespace(model=None),
    records=records,
    stop=stop,
  )
  with pytest.raises(loop.Stopped):
    assembly.Learner.next_batch(me, 0, lambda: True)
  with pytest.raises(loop.Stopped):
    assembly.Learner.begin(me, 0, None)
