"""The endless stream of training prompts: item i is a pure function of the seed and i.

So the data cursor of a run is one integer, and a resumed run finds the same prompts.
"""

import functools
from collections.abc import Sequence

import numpy as np


class PromptStream:
  """Passes over `examples`, each pass in its own order."""

  def __init__(self, examples: Sequence, seed: int):
    if not examples:
      raise ValueError("examples: got none, expected at least one")
    self._examples = examples
    self._order = functools.lru_cache(maxsize=2)(
      lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(examples))
    )

  def __getitem__(self, index: int):
    epoch, place = divmod(index, len(self._examples))
    return self._examples[self._order(epoch)[place]]
