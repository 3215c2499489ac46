"""What the decoder's work costs at least, counted from its shapes: flops and bytes.

A product of [m, k] and [k, n] counts 2 m k n; norms, rotations, activations and softmax count
nothing, nor does what is computed a second time to save memory or for padding. So these are the
numbers that model-flops utilisation (PaLM, arXiv 2204.02311, appendix B) is defined with.
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
  pairs: int  # of a token and one that it sees, itself included
  local_pairs: int  # the same in layers that see a window
  scored: int  # tokens that have logits

  def __add__(self, other: "Work") -> "Work":
    return Work(*(a + b for a, b in zip(self, other, strict=True)))


def causal_pairs(length: int, window: int = 0) -> int:
  """Of a row of so many tokens that see themselves and those before, `window` at most if > 0."""
  near = min(length, window) if window else length
  return near * (near + 1) // 2 + (length - near) * near


def work(
  config: decoder.DecoderConfig, groups: Iterable[tuple[int, Sequence[int]]], *, shared: bool
) -> Work:
  """Of prompts with completions, all completion tokens scored.

  Args:
    groups: (prompt tokens, tokens of each completion).
    shared: completions lie behind one copy of their prompt.
  """
  total = Work(0, 0, 0, 0)
  for prompt, completions in groups:
    copies = 1 if shared else len(completions)
    ends = [prompt + size for size in completions]
    total += Work(
      copies * prompt + sum(completions),
      *(_pairs(prompt, ends, copies, window) for window in (0, config.sliding_window)),
      sum(completions),
    )
  return total


def _pairs(prompt: int, ends: Sequence[int], copies: int, window: int) -> int:
  of_prompt = causal_pairs(prompt, window)
  return copies * of_prompt + sum(causal_pairs(end, window) - of_prompt for end in ends)


@functools.cache  # finding the shapes takes as long as a small step
def matrix_weights(config: decoder.DecoderConfig) -> int:
  """Weights of all layers that one token is multiplied by; of a mixture, its own experts'."""
  blocks = policy.shapes(lora.base_config(config))["blocks"]
  per_expert = config.experts_per_token / config.num_experts if config.num_experts else 0
  share = lambda name: per_expert if name.startswith("experts_") else 1
  matrices = {
    name: x for name, x in blocks.items() if name.startswith(("w_", "experts_", "router"))
  }
  return round(sum(share(name) * x.size for name, x in matrices.items()))


def forward_flops(config: decoder.DecoderConfig, work: Work) -> int:
  """Without adapters, which add a percent or two."""
  local = sum(config.local_layers)
  pairs = (config.num_layers - local) * work.pairs + local * work.local_pairs
  return (
    2 * matrix_weights(config) * work.tokens
    + 4 * config.num_heads * config.head_dim * pairs
    + 2 * config.width * config.vocab_size * work.scored
  )


def train_flops(config: decoder.DecoderConfig, work: Work) -> int:
  """Forward and backward: three times forward, twice where the weights are frozen."""
  return (2 if config.lora_rank else 3) * forward_flops(config, work)


class Step(NamedTuple):
  """One token for each of some rows, through the cache."""

  flops: int
  bytes: int  # that have to be read: every weight once, and each row's keys and values


def decode_step(config: decoder.DecoderConfig, lengths: Sequence[int]) -> Step:
  """Of rows that hold so many tokens, the new one included."""
  seen = [min(n, config.sliding_window or n) for n in lengths]
  flops = forward_flops(config, Work(len(lengths), sum(lengths), sum(seen), len(lengths)))
  number = jnp.dtype(config.compute_dtype).itemsize
  local = sum(config.local_layers)
  read = (config.num_layers - local) * sum(lengths) + local * sum(seen)
  return Step(
    flops, weight_bytes(config) + 2 * read * config.num_kv_heads * config.head_dim * number
  )


def weight_bytes(config: decoder.DecoderConfig) -> int:
  """Of all parameters as they are computed with; an embedding that is only looked up left out."""
  shapes = policy.cast(config, policy.shapes(lora.base_config(config)))
  if not config.tied_embeddings:
    shapes = {name: x for name, x in shapes.items() if name != "embedding"}
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
