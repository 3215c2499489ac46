"""The sizes of an engine, and the attention kernel that suits them."""

import dataclasses
import math
from typing import NamedTuple

import jax

from offpolicy_rl.model import attention, decoder, sharding

_NARROW = 32  # columns; pieces of fewer are not made four times as narrow


class Shape(NamedTuple):
  """Tokens that are prefilled at a time."""

  rows: int
  columns: int


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The sizes of an engine."""

  slots: int  # completions decoded side by side
  group_size: int  # completions of most prompts
  max_prompt_tokens: int
  max_tokens: int  # of a completion
  page_tokens: int = 32
  cache_tokens: int = 0  # of all rows together; 0 = enough for full slots of the longest rows
  prefill_tokens: int = 128  # at a time, of one long prompt or of several short ones
  steps: int = 8  # tokens decoded per dispatch
  candidates: int = 0  # recorded with every token of training
  episodes: int = 0  # with an environment: most begun at a time, in slots or waiting; 0 = slots

  @property
  def prompt_shape(self) -> Shape:
    """Pieces of prompts without their last token, which is left to the completions.

    No more rows than the slots can use.
    """
    columns = max(1, min(self.prefill_tokens, self.max_prompt_tokens - 1))
    rows = min(self.prefill_tokens // columns, self.slots // self.group_size)
    return Shape(max(1, rows), columns)

  def reply_shape(self, tokens: int) -> Shape:
    """Pieces of a reply of which so many tokens are left; nothing else may decide, see README."""
    columns = min(self.prefill_tokens, self.max_tokens)
    while columns >= _NARROW and tokens <= columns // 4:
      columns //= 4
    return Shape(max(1, min(self.prefill_tokens // columns, self.slots)), columns)

  @property
  def row_pages(self) -> int:
    return math.ceil((self.max_prompt_tokens + self.max_tokens) / self.page_tokens)

  @property
  def pages(self) -> int:
    """Pages in the pool, page 0 included."""
    if self.cache_tokens:
      return 1 + self.cache_tokens // self.page_tokens
    shared = (self.max_prompt_tokens - 1) // self.page_tokens
    prompts = 2 * math.ceil(self.most / self.group_size) + self.prompt_shape.rows
    return 1 + self.most * (self.row_pages - shared) + prompts * (shared + 1)

  @property
  def most(self) -> int:
    """Completions begun at a time, at most."""
    return max(self.slots, self.episodes)


def with_attention(
  config: decoder.DecoderConfig, sizes: Sizes, mesh: jax.sharding.Mesh
) -> decoder.DecoderConfig:
  """The model with the attention kernel with which an engine on this mesh decodes."""
  kernel = attention.decoding_kernel(
    mesh.devices.flat[0].platform,
    config,
    page_tokens=sizes.page_tokens,
    table_entries=sizes.slots * sizes.row_pages,
    shards=mesh.shape[sharding.RULES["kv_heads"]],
  )
  return dataclasses.replace(config, attention=kernel)
