"""Ends of completions, besides their length."""

import dataclasses
from collections.abc import Callable, Sequence

from offpolicy_rl.tasks import stop_texts


@dataclasses.dataclass(frozen=True)
class Stops:
  """Tokens that end a completion at once, and texts that do when they appear."""

  tokens: tuple[int, ...]
  texts: tuple[str, ...] = ()
  decode: Callable[[Sequence[int]], str] | None = None  # without special tokens; needed for texts
  decode_special: Callable[[Sequence[int]], str] | None = (
    None  # with them by name; None = there are none
  )

  def length(self, tokens: Sequence[int], looked_at: int) -> int | None:
    """Number of tokens up to the one that completes a stop text; None = there is no stop text.

    The first `looked_at` tokens are known to contain none.
    """
    if not self.texts or looked_at >= len(tokens):
      return None
    begin = self._begin(tokens, looked_at)
    if not self._appear(tokens[begin:]):
      return None
    ends = range(looked_at + 1, len(tokens) + 1)
    return next(end for end in ends if self._appear(tokens[begin:end]))

  def _appear(self, tokens: Sequence[int]) -> bool:
    reads = [read for read in (self.decode, self.decode_special) if read is not None]
    return any(stop_texts.first(read(tokens), self.texts) is not None for read in reads)

  def _begin(self, tokens: Sequence[int], looked_at: int) -> int:
    """A position before any text that ends behind `looked_at`."""
    assert self.decode is not None, "texts need it"
    longest = max(map(len, self.texts))
    begin, step = looked_at, 4 * longest  # a character is four tokens at most
    while begin > 0:
      begin = max(0, begin - step)
      if len(self.decode(tokens[begin:looked_at])) > longest:
        break  # else special tokens, which say nothing, fill it
      step *= 2
    return begin
