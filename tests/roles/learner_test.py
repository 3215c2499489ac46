"""The learner role's own decisions."""

import dataclasses
import pathlib
import socket
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.learner import loop
from offpolicy_rl.observe import watch
from offpolicy_rl.replay.lag import LagControl
from offpolicy_rl.roles import leader, learner, multihost
from offpolicy_rl.roles.weights import WeightPublisher
from offpolicy_rl.transport import weights


def test_a_learner_that_never_has_to_wait_still_hears_that_it_is_to_stop():
  """With quick samplers the next step's groups are always there."""
  stop = threading.Event()
  stop.set()
  always = types.SimpleNamespace(take=lambda ids, timeout: pytest.fail("another batch was taken"))
  files = types.SimpleNamespace(write_groups=lambda *_, **__: pytest.fail("a step was written"))
  fields = dict.fromkeys(field.name for field in dataclasses.fields(leader.Leader))
  first = leader.Leader(
    **fields
    | {
      "config": types.SimpleNamespace(learner=types.SimpleNamespace(prompts_per_step=2, steps=9)),
      "service": types.SimpleNamespace(ledger=always, control=LagControl("async", 1)),
      "choices": types.SimpleNamespace(model=None),
      "files": files,
      "orders": multihost.Orders(stop),
      "stop": stop,
    }
  )
  with pytest.raises(loop.Stopped):
    first.next_batch(0)
  first.prefetch.close()


def test_an_address_that_is_taken_is_the_error_that_is_raised(tiny_config, tmp_path):
  """Not one of the clean-up after it; and the run is said to have failed."""
  with socket.create_server(("127.0.0.1", 0)) as taken:
    serving = learner.Serving(f"127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(RuntimeError, match="127.0.0.1"):
      learner.run_learner(tiny_config, tmp_path / "run", serving)
  assert watch.read_status(tmp_path / "run").ended == "failed"


def test_whatever_fails_at_the_end_the_rest_is_done(monkeypatch):
  """A full disk must not keep the ports, nor the groups from being closed, nor hide the error."""
  done, full = [], OSError("metrics.jsonl: no space left")
  note = lambda name: lambda *_, **__: done.append(name)

  def fails(*_):
    raise full

  closing = ("prefetch", "publisher", "speed")
  ending = types.SimpleNamespace(
    **{name: types.SimpleNamespace(close=note(name)) for name in closing},
    say=note("said"),
    run_dir=pathlib.Path("nowhere"),
    checkpoints=types.SimpleNamespace(close=fails),
    files=types.SimpleNamespace(close=fails, finish=note("tracker")),
    screen=types.SimpleNamespace(stop=note("screen")),
    orders=types.SimpleNamespace(announce=note("other processes")),
    config=types.SimpleNamespace(
      transport=types.SimpleNamespace(heartbeat_seconds=1, lease_seconds=1)
    ),
    service=types.SimpleNamespace(
      dismiss=note("samplers"),
      groups=types.SimpleNamespace(close=note("groups")),
      ledger=types.SimpleNamespace(audit=fails),
    ),
    restored=None,
  )
  monkeypatch.setattr(learner.report, "write", fails)
  wire = types.SimpleNamespace(
    say_not_serving=note("health"), stop=lambda **_: types.SimpleNamespace(wait=note("wire"))
  )
  with pytest.raises(OSError, match="no space left"):
    learner._shut_down(ending, wire, "finished", 0.0)
  assert done[4:] == ["publisher", "speed", "wire", "other processes", "groups", "tracker"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_published_weights_stay_when_their_parameters_are_donated(dtype):
  """The next step reuses their memory while samplers still pull them."""
  params = {"a": jnp.arange(4096.0) + 0, "b": {"c": jnp.ones((64, 64)) * 3}}
  before = jax.tree.map(np.array, params)
  stepped = threading.Event()

  class Slow(weights.WeightStore):
    """Takes the weights after the next step."""

    def put(self, version, tensors):
      assert stepped.wait(60)
      super().put(version, tensors)

  publisher = WeightPublisher(Slow(), dtype)
  publisher.publish(1, params)
  donated = jax.jit(lambda p: jax.tree.map(lambda x: x - 1, p), donate_argnums=0)(params)
  jax.block_until_ready(donated)
  stepped.set()
  publisher.wait()
  kept = publisher.store.tensors(1)
  np.testing.assert_array_equal(kept["a"], before["a"].astype(dtype))
  np.testing.assert_array_equal(kept["b/c"], before["b"]["c"].astype(dtype))
