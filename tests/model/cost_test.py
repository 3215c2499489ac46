"""Counts against XLA's own of one layer, and against counting pairs one by one."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.model import cost, decoder, policy
from offpolicy_rl.replay import packing
from tests.model.decoder_test import CONFIG

# Large enough that matrix products are nearly all of the work; one layer, which XLA counts once.
WIDE = decoder.DecoderConfig(
  vocab_size=2048,
  num_layers=1,
  width=256,
  num_heads=8,
  num_kv_heads=4,
  head_dim=32,
  mlp_width=768,
  rope_theta=1e4,
  norm_eps=1e-6,
  tied_embeddings=True,
)


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_forward_pass_are_those_that_xla_counts(tied):
  config = dataclasses.replace(WIDE, tied_embeddings=tied)
  tokens = jax.ShapeDtypeStruct((4, 128), jnp.int32)
  lowered = jax.jit(policy.apply, static_argnums=0).lower(
    config, policy.shapes(config), tokens, tokens
  )
  counted = lowered.compile().cost_analysis()["flops"]
  # Plain attention computes all pairs.
  found = cost.forward_flops(config, cost.Work(4 * 128, 4 * 128**2, 0, 4 * 128))
  assert found < counted < 1.05 * found


def test_flops_of_a_mixture_are_those_of_the_experts_that_a_token_has():
  config = dataclasses.replace(WIDE, num_experts=8, experts_per_token=2, expert_width=64)
  own = 256 * 32 * 2 * (8 + 4) + 256 * 8 + 2 * 3 * 256 * 64
  assert cost.matrix_weights(config) == own


@pytest.mark.parametrize("window", [0, 1, 5, 100])
def test_pairs_are_counted_right(window):
  for length in (0, 1, 4, 5, 6, 30):
    slow = sum(
      0 <= i - j < (window or length) for i, j in itertools.product(range(length), repeat=2)
    )
    assert cost.causal_pairs(length, window) == slow


@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_the_work_of_groups_is_what_their_rows_see(layout):
  config = dataclasses.replace(CONFIG, sliding_window=6, local_layers=(True, False, True))
  groups = [(7, [3, 1, 5]), (2, [4, 4]), (9, [8])]
  completions = [
    packing.Completion(g, np.ones(prompt, np.int32), np.ones(size, np.int32))
    for g, (prompt, sizes) in enumerate(groups)
    for size in sizes
  ]
  limits = packing.Limits(layout, 9, 8, columns=60)
  rows, _ = packing.lay_out([completions], limits)
  visible, behind = decoder._packed_view(rows.positions[0], rows.ends[0])
  visible &= (rows.segments[0] > 0)[:, :, None] & (rows.segments[0] > 0)[:, None, :]
  found = cost.work(config, groups, shared=layout == "shared")
  assert found == ((rows.segments > 0).sum(), visible.sum(), (visible & (behind < 6)).sum(), 25)


def test_a_decode_step_reads_every_weight_once_and_the_cache_of_each_row():
  config = dataclasses.replace(
    CONFIG, sliding_window=6, local_layers=(True, False, True), compute_dtype="bfloat16"
  )
  params = sum(x.size for x in jax.tree.leaves(policy.shapes(config)))
  found = cost.decode_step(config, [4, 10])
  # Two local layers see 4 and 6 tokens, one sees 4 and 10; 2 heads of 8 channels, keys and values.
  assert found.bytes == 2 * params + 2 * (2 * (4 + 6) + 14) * 2 * 2 * 8
  # Per token twice the weights, embedding included (tied); per pair 4 x 4 heads x 8 channels.
  vectors = 7 * 32
  assert found.flops == 2 * 2 * (params - vectors) + 4 * 32 * (2 * 10 + 14)
  untied = cost.decode_step(dataclasses.replace(config, tied_embeddings=False), [4, 10])
  assert untied == found


def test_training_is_three_times_a_forward_pass_and_less_with_adapters():
  some = cost.Work(100, 500, 0, 30)
  forward = cost.forward_flops(CONFIG, some)
  adapted = dataclasses.replace(CONFIG, lora_rank=2, lora_alpha=4.0, lora_targets=("w_q",))
  assert cost.train_flops(CONFIG, some) == 3 * forward
  assert cost.train_flops(adapted, some) == 2 * forward
