"""Flops and bytes of the decoder's work, counted from its shapes; a lower bound.

A product of [m, k] and [k, n] counts 2 m k n. Norms, rotations, activations and softmax count
nothing, nor do padding and what is computed twice to save memory. Model-flops utilisation (PaLM,
arXiv 2204.02311, appendix B) is defined with these numbers.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offpolicy_rl.model import decoder, lora, policy


class Work(NamedTuple):
  """A forward pass over some tokens."""

  tokens: int
  pairs: int  # (token, token that it sees), itself included
  local_pairs: int  # the same in layers with a sliding window
  scored: int  # tokens that have logits


def causal_pairs(length: int, window: int = 0) -> int:
  """Pairs (token, token it sees) of a row of `length` tokens; a window > 0 limits what is seen."""
  near = min(length, window) if window else length
  return near * (near + 1) // 2 + (length - near) * near


def work(
  config: decoder.DecoderConfig, groups: Iterable[tuple[int, Sequence[int]]], *, shared: bool
) -> Work:
  """Work of prompts with completions, all completion tokens scored, no context going back.

  Args:
    groups: (prompt tokens, tokens of each completion).
    shared: completions lie behind one copy of their prompt.
  """
  parts = [Work(0, 0, 0, 0)]
  for prompt, completions in groups:
    copies = 1 if shared else len(completions)
    ends = [prompt + size for size in completions]
    pairs, local = (_pairs(prompt, ends, copies, n) for n in (0, config.sliding_window))
    new = sum(completions)
    parts.append(Work(copies * prompt + new, pairs, local, new))
  return Work(*map(sum, zip(*parts, strict=True)))


def _pairs(prompt: int, ends: Sequence[int], copies: int, window: int) -> int:
  of_prompt = causal_pairs(prompt, window)
  return copies * of_prompt + sum(causal_pairs(end, window) - of_prompt for end in ends)


@functools.cache  # finding the shapes takes as long as a small step
def matrix_weights(config: decoder.DecoderConfig) -> int:
  """Weights of all layers that a token is multiplied by; in a mixture, those of its experts."""
  blocks = policy.shapes(lora.base_config(config))["blocks"]
  per_expert = config.experts_per_token / config.num_experts if config.num_experts else 0
  share = lambda name: per_expert if name.startswith("experts_") else 1
  matrices = [name for name in blocks if name.startswith(("w_", "experts_", "router"))]
  return round(sum(share(name) * blocks[name].size for name in matrices))


def forward_flops(config: decoder.DecoderConfig, work: Work) -> int:
  """Flops of a forward pass, without adapters, which add a percent or two."""
  local = sum(config.local_layers)
  pairs = (config.num_layers - local) * work.pairs + local * work.local_pairs
  return (
    2 * matrix_weights(config) * work.tokens
    + 4 * config.num_heads * config.head_dim * pairs
    + 2 * config.width * config.vocab_size * work.scored
  )


def train_flops(config: decoder.DecoderConfig, work: Work) -> int:
  """Flops of forward and backward: three times forward, twice where the weights are frozen."""
  return (2 if config.lora_rank else 3) * forward_flops(config, work)


class Step(NamedTuple):
  """Cost of decoding one token for each of some rows through the cache."""

  flops: int
  bytes: int  # read: every weight once, and each row's keys and values


def decode_step(config: decoder.DecoderConfig, lengths: Sequence[int]) -> Step:
  """Cost of a step for rows that hold `lengths` tokens, the new one included."""
  seen = [min(n, config.sliding_window or n) for n in lengths]
  flops = forward_flops(config, Work(len(lengths), sum(lengths), sum(seen), len(lengths)))
  itemsize = jnp.dtype(config.compute_dtype).itemsize
  local = sum(config.local_layers)
  read = (config.num_layers - local) * sum(lengths) + local * sum(seen)
  cache_bytes = 2 * read * config.num_kv_heads * config.head_dim * itemsize
  return Step(flops, weight_bytes(config) + cache_bytes)


def weight_bytes(config: decoder.DecoderConfig) -> int:
  """Bytes of all parameters in the compute dtype, without an embedding that is only looked up."""
  shapes = policy.cast(config, policy.shapes(lora.base_config(config)))
  if not config.tied_embeddings:
    shapes = {name: x for name, x in shapes.items() if name != "embedding"}
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
