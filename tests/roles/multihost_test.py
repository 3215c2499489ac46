"""What becomes of one process of several."""

import os
import threading
import types

import jax
import pytest

from offpolicy_rl.config import ConfigError
from offpolicy_rl.learner import loop
from offpolicy_rl.roles import multihost
from offpolicy_rl.system.locks import Held


@pytest.mark.parametrize(
  ("error", "code", "traceback"),
  [
    (Held("--run_dir: at work"), 1, False),
    (ConfigError("seed: 5"), 2, False),
    (KeyError("x"), 1, True),
  ],
)
def test_an_error_ends_the_process_at_once_and_is_said(
  monkeypatch, capsys, caplog, error, code, traceback
):
  codes = []
  monkeypatch.setattr(os, "_exit", codes.append)
  with multihost.ending_together():
    raise error
  assert codes == [code]
  assert capsys.readouterr().err == f"offpolicy-rl learner: {error}\n"
  assert bool(caplog.records) == traceback


class Store:
  """The key-value store of `jax.distributed`, for threads of one process."""

  def __init__(self):
    self.values, self.changed, self.gone = {}, threading.Condition(), False

  def key_value_set(self, key, value, allow_overwrite=False):
    with self.changed:
      assert allow_overwrite or key not in self.values
      self.values[key] = value
      self.changed.notify_all()

  def key_value_delete(self, key):
    with self.changed:
      del self.values[key]

  def blocking_key_value_get(self, key, timeout_ms):
    with self.changed:
      self.changed.wait_for(lambda: key in self.values or self.gone, 0.05)
      if self.gone:
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")
      if key not in self.values:
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")
      return self.values[key]


@pytest.fixture
def both(monkeypatch):
  """(store, orders of the first process, its stop, orders of another one, its stop)."""
  store, ends = Store(), []
  monkeypatch.setattr(
    multihost.distributed, "global_state", types.SimpleNamespace(client=store), raising=False
  )
  for process in (0, 1):
    monkeypatch.setattr(multihost.jax, "process_index", lambda process=process: process)
    stop = threading.Event()
    ends += [multihost.Orders(stop), stop]
  yield (store, *ends)
  ends[3].set()
  store.key_value_set("offpolicy_rl/stop", "1", allow_overwrite=True)


def test_orders_arrive_in_their_order_also_when_they_are_waited_for(both):
  store, first, _, other, _ = both
  later = threading.Timer(0.2, lambda: first.announce(multihost.SAVE, versions=[3, 4]))
  first.announce(multihost.BEGIN, step=None)
  later.start()
  assert other.receive(multihost.BEGIN)["step"] is None
  assert other.receive(multihost.SAVE)["versions"] == [3, 4]
  for step in range(200):
    first.announce(multihost.SAVE, versions=[step])
    assert other.receive(multihost.SAVE)["versions"] == [step]
  assert len(store.values) < 70  # old ones go


def test_a_stop_ends_whatever_the_others_wait_for(both):
  _, first, _, other, _ = both
  first.announce(multihost.STOP)
  with pytest.raises(loop.Stopped):
    other.receive(multihost.BATCH)


def test_another_order_than_expected_is_an_error_by_name(both):
  _, first, _, other, _ = both
  first.announce(multihost.END)
  with pytest.raises(multihost.MultihostError, match=r"process 0 is at .*end.* this one at 'save'"):
    other.receive(multihost.SAVE)


def test_whoever_is_told_to_stop_stops_the_first_process(both):
  _, _, stop, _, others_stop = both
  assert not stop.is_set()
  others_stop.set()
  assert stop.wait(5)


def test_a_first_process_that_is_gone_is_said(both):
  store, _, _, other, _ = both
  store.gone = True
  with pytest.raises(multihost.MultihostError, match="process 0 of the learner is gone"):
    other.receive(multihost.BATCH)


def test_a_learner_of_one_process_announces_to_nobody():
  orders = multihost.Orders(threading.Event())
  assert orders.alone
  orders.announce(multihost.END)
