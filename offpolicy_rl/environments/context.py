"""The context of an episode whose chat template leaves out earlier thoughts."""

from collections.abc import Sequence

from offpolicy_rl.tasks import turns


class Context:
  """Messages and tokens behind the prompt of an episode.

  Where the template writes what came before as the policy has read it, tokens are added behind
  those that were sampled. Else the context goes back to the first token that differs, and what the
  template has from there on is read instead.
  """

  def __init__(self, history: turns.ChatHistory):
    """Begins with an empty context behind the prompt, which lacks its tail.

    `history`: the chat template.
    """
    self._history = history
    self._messages: list[dict[str, str]] = []
    self._text = ""  # of what is seen, as the template has it
    self._seen: list[tuple[int, int]] = []  # (token, its index in the episode)
    self._size = 0  # tokens of the episode

  def _add(self, tokens: Sequence[int]) -> None:
    self._seen += zip(tokens, range(self._size, self._size + len(tokens)), strict=True)
    self._size += len(tokens)

  def begin(self) -> list[int]:
    """The tokens of an episode in which the policy speaks first."""
    self._text = self._history.tail_text
    self._add(self._history.tail)
    return self._history.tail

  def said(self, tokens: Sequence[int], text: str) -> None:
    """Adds a turn of the policy; `text`: up to its end."""
    self._messages.append({"role": "assistant", "content": self._history.opened + text})
    self._text += text
    self._add(tokens)

  def answered(self, texts: Sequence[str], role: str) -> tuple[list[int], int | None]:
    """Adds messages of the environment.

    Returns:
      Tokens that the policy reads next, at least one; and the index in the episode of the first
      token that it does not see from there on, None if it goes on seeing all that it saw.

    Raises:
      TokenizerError: the template does not take them.
    """
    if not self._messages:  # they come before its first turn
      self._messages.append({"role": "assistant", "content": ""})
    self._messages += ({"role": role, "content": text} for text in texts)
    text = self._history.text(self._messages)
    if self._seen and text.startswith(self._text):
      rest, to = text[len(self._text) :], None
      tokens = self._history.continuation(rest, self._seen[-1][0])
    else:
      whole = self._history.tokens(text)
      same = min(turns.common([token for token, _ in self._seen], whole), len(whole) - 1)
      tokens, to = whole[same:], self._seen[same][1] if same < len(self._seen) else None
      del self._seen[same:]
    self._text = text
    self._add(tokens)
    return tokens, to
