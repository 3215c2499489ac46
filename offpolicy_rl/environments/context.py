"""The context of an episode whose history may be rewritten: by its chat template, by an agent."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from offpolicy_rl.tasks import turns
from offpolicy_rl.tasks.special_tokens import TokenizerError


class _End(NamedTuple):
  """The end of a turn of the policy that is seen."""

  messages: list[dict[str, Any]]  # up to there, behind the prompt
  text: str  # of these, as the template has it
  size: int  # of what is seen, up to there

  def begins(self, messages: list[dict[str, Any]], text: str) -> bool:
    same = messages[: len(self.messages)] == self.messages
    return same and text.startswith(self.text)


class Context:
  """Messages and tokens behind the prompt of an episode.

  As far as the conversation goes on, and the template writes what came before as the policy has
  read it, tokens are added behind those that were sampled. Else the context goes back to the first
  token that differs, and what the template has from there on is read instead.
  """

  def __init__(self, history: turns.ChatHistory):
    """Begins with an empty context behind the prompt, which lacks its tail.

    `history`: the chat template.
    """
    self._history = history
    self._said: list[dict[str, str]] = []  # the policy's turns
    self._messages: list[dict[str, Any]] = []  # those that are seen
    self._text = ""  # of these, as the template has it
    self._ends: list[_End] = []
    self._seen: list[tuple[int, int]] = []  # (token, its index in the episode)
    self._size = 0  # tokens of the episode

  def _add(self, tokens: Sequence[int]) -> None:
    self._seen += zip(tokens, range(self._size, self._size + len(tokens)), strict=True)
    self._size += len(tokens)

  @property
  def size(self) -> int:
    """Number of tokens that the policy sees behind the prompt."""
    return len(self._seen)

  def begin(self) -> list[int]:
    """The tokens of an episode in which the policy speaks first."""
    self._text = self._history.tail_text
    self._add(self._history.tail)
    return self._history.tail

  def said(self, tokens: Sequence[int], text: str) -> None:
    """Adds a turn of the policy; `text`: up to its end."""
    self._said.append({"role": "assistant", "content": self._history.opened + text})
    self._messages = [*self._messages, self._said[-1]]
    self._text += text
    self._add(tokens)
    self._ends.append(_End(self._messages, self._text, len(self._seen)))

  def answered(self, texts: Sequence[str], role: str) -> tuple[list[int], int | None]:
    """Adds messages of the environment.

    Returns:
      Tokens that the policy reads next, at least one; and the index in the episode of the first
      token that it does not see from there on, None if it goes on seeing all that it saw.

    Raises:
      TokenizerError: the template does not take them.
    """
    # Those that come before the policy's first turn follow an empty one.
    before = self._messages or [{"role": "assistant", "content": ""}]
    return self._read([*before, *({"role": role, "content": text} for text in texts)])

  def rewritten(self, messages: Sequence[dict[str, Any] | int]) -> tuple[list[int], int | None]:
    """Puts these messages in the place of all those behind the prompt; returns as `answered`.

    Args:
      messages: as the chat template takes them; a number is that turn of the policy, from 0.

    Raises:
      TokenizerError: the template does not take them.
    """
    if any(isinstance(m, int) and not 0 <= m < len(self._said) for m in messages):
      raise TokenizerError(f"got {messages!r:.100}, expected turns below {len(self._said)}")
    return self._read([self._said[m] if isinstance(m, int) else m for m in messages])

  def _read(self, messages: list[dict[str, Any]]) -> tuple[list[int], int | None]:
    text, seen = self._history.text(messages), [token for token, _ in self._seen]
    end = next((end for end in reversed(self._ends) if end.begins(messages, text)), None)
    if end is None:
      whole = self._history.tokens(text)
    else:  # up to there it stays in the tokens that were sampled
      rest = self._history.continuation(text[len(end.text) :], seen[end.size - 1])
      whole = seen[: end.size] + rest
    same = min(turns.common(seen, whole), len(whole) - 1)
    to = self._seen[same][1] if same < len(seen) else None
    del self._seen[same:]
    self._ends = [end for end in self._ends if end.size <= same]
    self._messages, self._text = messages, text
    self._add(whole[same:])
    return whole[same:], to
