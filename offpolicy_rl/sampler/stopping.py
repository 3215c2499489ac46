"""What ends a completion besides its length."""

import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Stops:
  """Tokens that end a completion at once, and texts that do when they appear."""

  tokens: tuple[int, ...]
  texts: tuple[str, ...] = ()
  decode: Callable[[list[int]], str] | None = None  # needed for texts

  def found(self, tokens: Sequence[int], looked_at: int) -> int | None:
    """Length of a completion up to the token that completes one of the texts, None without one.

    Args:
      looked_at: none was found within so many of the tokens.
    """
    if not self.texts or looked_at >= len(tokens):
      return None
    # Every token adds a character at least, apart from those that are a part of one.
    begin = max(0, looked_at - 4 * max(map(len, self.texts)))
    if not self._appears(tokens[begin:]):
      return None
    return next(
      length for length in range(looked_at + 1, len(tokens) + 1)
      if self._appears(tokens[begin:length])
    )  # fmt: skip

  def _appears(self, tokens: Sequence[int]) -> bool:
    text = self.decode(list(tokens))
    return any(stop in text for stop in self.texts)
