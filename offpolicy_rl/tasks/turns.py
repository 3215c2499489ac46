"""Earlier turns of a chat, as the model's template writes them.

Templates of thinking models leave thoughts out of earlier turns, and agents change what was said.
So what the model has read and written before is not what its next turn begins with; see
`environment.history`.
"""

import contextlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

from offpolicy_rl.tasks import thoughts
from offpolicy_rl.tasks.special_tokens import TokenizerError
from offpolicy_rl.tasks.tokenizer import Tokenizer

_QUESTION, _ANSWER = "2 + 2?", "2 + 2 = 4"
_ASKED = {"role": "user", "content": _QUESTION}
_THINKING = [f"{begin}\n{_ANSWER}\n{end}\n\n{_ANSWER}" for begin, end in thoughts.TAGS]
_REMEDY = "set environment.history to keep or rewrite, task.chat_arguments or task.chat=False"


class ChatHistory:
  """Says in text and tokens what follows the prompt of a chat.

  Attributes:
    tail, tail_text: tokens and text with which an episode begins, as prompts lack them; at least
      a token.
    opened: the beginning of a thought that ends prompts, "" if none does.
  """

  def __init__(self, words: Tokenizer):
    """Renders a chat; TokenizerError if its tokens don't begin with those of its prompt."""
    self._words, self._opening = words, words.opening(_QUESTION)
    begun = words.chat(self._opening)
    answered = [self._chat(_talk(text)) for text in (_ANSWER, *_THINKING)]
    trunk = begun[: min(common(begun, text) for text in answered)]
    _require_only_thoughts(answered[0][len(trunk) :])
    with contextlib.suppress(TokenizerError):  # some templates take turns strictly
      answered.append(self._chat([_ASKED]))
    self._trunk = self._without_tail(begun, answered)
    self._beginning = words.encode(self._trunk)
    self.tail_text, self.tail = begun[len(self._trunk) :], self._behind(begun)
    opening = thoughts.opened_by(begun)
    self.opened = begun[begun.rindex(opening) :] if opening else ""

  def _without_tail(self, begun: str, longer: Sequence[str]) -> str:
    """A prompt up to the token, at the latest its last, that other messages may replace.

    `longer`: chats with messages behind this prompt.
    """
    encode, ids = self._words.encode, self._words.encode(begun)
    same = min([*(common(ids, encode(text)) for text in longer), len(ids) - 1])
    for size in range(same, 0, -1):
      text = begun.removesuffix(self._words.decode_special(ids[size:]))
      if encode(text) == ids[:size]:
        return text
    raise TokenizerError(
      f"chat template: the tokens of {begun!r:.300} don't begin with those of any part of it that "
      "stays if messages follow"
    )

  def _chat(self, messages: Sequence[dict[str, Any]]) -> str:
    return self._words.chat([*self._opening, *messages])

  def _behind(self, text: str) -> list[int]:
    ids, begin = self._words.encode(text), self._beginning
    if ids[: len(begin)] != begin:
      raise TokenizerError(
        f"chat template: the tokens of {text!r:.300} don't begin with those of {self._trunk!r:.300}"
      )
    return ids[len(begin) :]

  def text(self, messages: Sequence[dict[str, Any]]) -> str:
    """Text of messages behind the prompt, and the beginning of the model's next turn.

    Raises:
      TokenizerError: the template does not take them, or changes what was before; or one has the
        text of a special token in it.
    """
    for message in messages:
      calls = json.dumps(message.get("tool_calls", ""), ensure_ascii=False)
      by_model = message["role"] == "assistant"
      self._words.require_plain(message["content"] + calls, by_model=by_model)
    text = self._chat(messages)
    if not text.startswith(self._trunk):
      raise TokenizerError(
        f"chat template: got {text!r:.300}, expected {self._trunk!r:.300} at the beginning"
      )
    return text[len(self._trunk) :]

  def tokens(self, text: str) -> list[int]:
    """Token ids of such a text; TokenizerError for one without an embedding."""
    return self._behind(self._trunk + text)

  def continuation(self, text: str, last: int) -> list[int]:
    """Token ids of the end of such a text, from the end of a turn of the model on; errors alike.

    `last`: its last token; ends of the turn up to it are left out.
    """
    return self._words.behind_turn(text, last)

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
    mode: refuse = thoughts included; else it may leave these out, or write that there are none.
  """
  if not words.in_chat:
    return
  if mode == thoughts.REWRITE:
    ChatHistory(words)
    return
  begin = words.chat(words.opening(_QUESTION))
  if mode == thoughts.KEEP:
    whole = words.chat([*words.opening(_QUESTION), *_talk(_ANSWER)])
    _require_only_thoughts(whole[common(begin, whole) :])
    return
  for text in (_ANSWER, *(() if thoughts.opened_by(begin) else _THINKING)):
    whole = words.chat([*words.opening(_QUESTION), *_talk(text)])
    expected = begin + text
    if not whole.startswith(expected):
      raise TokenizerError(
        f"chat template: behind an answer it writes {whole[: len(expected)]!r:.300}, expected "
        f"{expected!r:.300}, as the model has read it: {_REMEDY}"
      )


def _require_only_thoughts(text: str) -> None:
  """Raises TokenizerError if the template writes more than tags of thoughts before an answer."""
  before, _, behind = text.partition(_ANSWER)
  bare = before.strip()
  for tag in thoughts.ALL_TAGS:
    bare = bare.replace(tag, "")
  if bare.strip() or not behind:
    raise TokenizerError(
      f"chat template: it writes an earlier answer {_ANSWER!r} as {text!r:.200}, expected nothing "
      "but a thought before it"
    )


def common(a: Sequence, b: Sequence) -> int:
  """The length of the common beginning of two sequences."""
  pairs = zip(a, b, strict=False)
  return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _talk(said: str) -> list[dict[str, str]]:
  return [{"role": "assistant", "content": said}, _ASKED]
