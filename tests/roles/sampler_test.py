"""The sampler role's own decisions."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from offpolicy_rl import types
from offpolicy_rl.model import lora, policy, sharding
from offpolicy_rl.replay import batching
from offpolicy_rl.roles import build
from offpolicy_rl.roles.weights import SamplerWeights, place
from tests.model.decoder_test import CONFIG

ADAPTED = dataclasses.replace(CONFIG, lora_rank=2, lora_alpha=4.0, lora_targets=("w_q",))


def test_adapters_of_another_session_with_the_same_number_are_not_mixed_up(tiny_config):
  base_params = policy.init(CONFIG, jax.random.key(0))
  shapes, held = lora.split(policy.shapes(ADAPTED))[1], []

  def pull_weights(low, high, receiver):
    if low == types.BASE_VERSION:
      return low, policy.flatten(base_params)
    if receiver in held:
      return 3, None  # nothing new
    held.append(receiver)
    value = float(len(held))
    return 3, policy.flatten(jax.tree.map(lambda x: np.full(x.shape, value, np.float32), shapes))

  learner = SimpleNamespace(session="one", pull_weights=pull_weights)
  meshes = [sharding.make_mesh(devices=[device]) for device in jax.devices()[:2]]
  weights = SamplerWeights(learner, tiny_config, ADAPTED, meshes)
  first = weights.pull(3, 3)
  assert weights.pull(3, 3)[1] is first[1]  # merged once
  learner.session = "two"  # the learner was restarted and came to version 3 again
  second = weights.pull(3, 3)
  assert first[0] == second[0] == 3
  own = base_params["blocks"]["w_q"]
  added = lambda pulled, at: np.asarray(pulled[1][at]["blocks"]["w_q"]) - np.asarray(own)
  for at, device in enumerate(jax.devices()[:2]):  # a copy on each mesh
    assert second[1][at]["blocks"]["w_q"].devices() == {device}
    np.testing.assert_allclose(added(second, at), 4 * added(first, at), rtol=1e-3)


def placed_at(offset: int, values: np.ndarray) -> np.ndarray:
  """A copy that begins so many bytes after an address divisible by 64."""
  room = np.zeros(values.nbytes + 128, np.uint8)
  start = -room.ctypes.data % 64 + offset
  made = room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
  made[...] = values
  return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("offset", [0, 4, 16, 32])
def test_the_next_version_is_not_written_over_the_one_in_use(offset, dtype):
  """The receiver reuses its memory; on CPU JAX uses it, too, where it is aligned to 64 bytes."""
  values = np.arange(64 * 48).reshape(64, 48).astype(jnp.dtype(dtype))
  received = {"embedding": placed_at(offset, values), "other": placed_at(offset, values[0])}
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), received)
  meshes = [sharding.make_mesh(), sharding.make_mesh(devices=jax.devices()[1:2])]
  meshes.append(sharding.make_mesh(fsdp=2))
  in_use = [place(received, shapes, mesh) for mesh in meshes]
  for tensor in received.values():
    tensor[...] = -1
  for params in in_use:
    np.testing.assert_array_equal(np.asarray(params["embedding"]), values)
    np.testing.assert_array_equal(np.asarray(params["other"]), values[0])


def test_a_bfloat16_sampler_holds_a_bfloat16_base():
  coarse = dataclasses.replace(ADAPTED, compute_dtype="bfloat16")
  exact = policy.init(CONFIG, jax.random.key(0))
  kept = policy.cast(coarse, exact)
  adapters = jax.tree.map(lambda x: jnp.full(x.shape, 0.01), lora.split(policy.shapes(ADAPTED))[1])
  merged = lora.merge(coarse, kept, adapters)
  assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), kept)
  again = policy.cast(coarse, lora.merge(coarse, wide, adapters))
  for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(again), strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=2**-7, atol=1e-6)  # the last bit of bfloat16


def test_demonstrations_take_rows_of_their_own_size():
  """A demonstration is no group: with shared prompts it needs no room for a group's completions."""
  config = base.get_config()
  config.learner.layout = "shared"
  pairs = [(np.array([2, 3], np.int32), np.array([5, 1], np.int32))] * 4
  batch = batching.demonstration_batch(pairs, build.limits(config, group_size=1))
  longest = config.task.max_prompt_tokens + config.task.max_completion_tokens
  assert batch.rows.tokens.shape == (1, 4, longest)
