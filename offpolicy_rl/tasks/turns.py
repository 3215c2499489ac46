"""Earlier turns of a chat, as the model's template writes them.

Templates of thinking models leave thoughts out of earlier turns. So what the model has read and
written before is not what its next turn begins with; see `environment.thoughts`.
"""

import itertools
from collections.abc import Sequence

from offpolicy_rl.tasks import thoughts
from offpolicy_rl.tasks.special_tokens import TokenizerError
from offpolicy_rl.tasks.tokenizer import Tokenizer

_QUESTION, _ANSWER = "2 + 2?", "2 + 2 = 4"
_REMEDY = "set environment.thoughts to keep or drop, task.chat_arguments or task.chat=False"


class ChatHistory:
  """Says in text and tokens what follows the prompt of a chat."""

  def __init__(self, words: Tokenizer):
    """Renders a chat; TokenizerError if its tokens don't begin with those of its prompt."""
    self._words, self._opening = words, words.opening(_QUESTION)
    begun = words.chat(self._opening)
    # A prompt ends with the tail, which the template leaves out of earlier turns.
    self._trunk = begun[: common(begun, self._chat(_talk(_ANSWER)))]
    self._beginning = words.encode(self._trunk)
    self.tail_text = begun[len(self._trunk) :]
    self.tail = self._behind(begun)
    self.tokens(self.text(_talk(f"<think>\n{_ANSWER}\n</think>\n\n{_ANSWER}")))

  def _chat(self, messages: Sequence[dict[str, str]]) -> str:
    return self._words.chat([*self._opening, *messages])

  def _behind(self, text: str) -> list[int]:
    ids, begin = self._words.encode(text), self._beginning
    if ids[: len(begin)] != begin:
      raise TokenizerError(
        f"chat template: the tokens of {text!r:.300} don't begin with those of {self._trunk!r:.300}"
      )
    return ids[len(begin) :]

  def text(self, messages: Sequence[dict[str, str]]) -> str:
    """Text of messages behind the prompt, the model's first, and the beginning of its next turn.

    Raises:
      TokenizerError: the template does not take them, or changes what was before; or one has the
        text of a special token in it.
    """
    for message in messages:
      self._words.require_plain(message["content"], by_model=message["role"] == "assistant")
    text = self._chat(messages)
    if not text.startswith(self._trunk):
      raise TokenizerError(
        f"chat template: got {text!r:.300}, expected {self._trunk!r:.300} at the beginning"
      )
    return text[len(self._trunk) :]

  def tokens(self, text: str) -> list[int]:
    """Token ids of such a text; TokenizerError for one without an embedding."""
    return self._behind(self._trunk + text)

  def continuation(self, text: str) -> list[int]:
    """Token ids of the end of such a text, from the end of a turn of the model on; errors alike."""
    return self._words.encode(text)

  def without_tail(self, prompt: Sequence[int]) -> list[int]:
    """A prompt up to its tail, with which its episodes begin; TokenizerError if it lacks it."""
    prompt = list(prompt)
    size = len(prompt) - len(self.tail)
    if prompt[size:] != self.tail:
      raise TokenizerError(f"prompt: ends with tokens {prompt[size:]}, expected {self.tail}")
    return prompt[:size]


def check(words: Tokenizer, mode: str) -> None:
  """Raises TokenizerError if the template writes earlier turns of the model otherwise.

  Args:
    mode: refuse = thoughts included; keep = thoughts aside; drop = it may write what it likes.
  """
  if not words.in_chat:
    return
  if mode == thoughts.DROP:
    ChatHistory(words)
    return
  begin = words.chat(words.opening(_QUESTION))
  said = [_ANSWER]
  if mode == thoughts.REFUSE and not thoughts.opened_by(begin):
    said += [f"{tag}\n{_ANSWER}\n{end}\n\n{_ANSWER}" for tag, end in thoughts.TAGS]
  for text in said:
    whole = words.chat([*words.opening(_QUESTION), *_talk(text)])
    expected = begin + text
    if mode == thoughts.KEEP:
      tail = begin[common(begin, whole) :]
      if any(tag in tail for tag, _ in thoughts.TAGS):
        expected = begin.removesuffix(tail) + text
    if not whole.startswith(expected):
      raise TokenizerError(
        f"chat template: behind an answer it writes {whole[: len(expected)]!r:.300}, expected "
        f"{expected!r:.300}, as the model has read it: {_REMEDY}"
      )


def common(a: Sequence, b: Sequence) -> int:
  """The length of the common beginning of two sequences."""
  pairs = zip(a, b, strict=False)
  return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _talk(said: str) -> list[dict[str, str]]:
  return [{"role": "assistant", "content": said}, {"role": "user", "content": _QUESTION}]
