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
from offpolicy_rl.tasks.tokenizer import Tokenizer, describe_ends

_QUESTION, _ANSWER = "2 + 2?", "2 + 2 = 4"
_ASKED = {"role": "user", "content": _QUESTION}
_SECOND = "3 + 3 = 6"
# What an environment says behind each of the two answers.
_TOLD = {"user": (("3 + 3?",), ("4 + 4?",)), "tool": (("6",), ("8", "9"))}
_REMEDY = "set environment.history to keep or rewrite, task.chat_arguments or task.chat=False"
_AROUND = 30  # characters before a difference that are shown


def _with_thoughts(answer: str) -> list[str]:
  return [f"{begin}\n{answer}\n{end}\n\n{answer}" for begin, end in thoughts.TAGS]


_THINKING = _with_thoughts(_ANSWER)


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


def check(words: Tokenizer, mode: str, roles: Sequence[str] = ("user",)) -> None:
  """Raises TokenizerError if the template writes earlier turns otherwise than a model reads them.

  A chat of two answers is put together as an episode's is, and compared with what the template
  writes of the whole, token by token.

  Args:
    mode: refuse = thoughts included; else it may leave these out, or write that there are none.
    roles: of what the environment may say, user and tool.
  """
  if not words.in_chat:
    return
  begin, answers = words.chat(words.opening(_QUESTION)), [(_ANSWER, _SECOND)]
  if mode == thoughts.REWRITE:
    ChatHistory(words)
  elif mode == thoughts.KEEP:
    whole = words.chat([*words.opening(_QUESTION), *_talk(_ANSWER)])
    _require_only_thoughts(whole[common(begin, whole) :])
  else:
    if not thoughts.opened_by(begin):
      answers += zip(_THINKING, _with_thoughts(_SECOND), strict=True)
    _require_answers(words, begin, [first for first, _ in answers])
  for role in roles:
    for pair in answers:
      _require_as_read(words, pair, role, exact=mode == thoughts.REFUSE)


def _require_answers(words: Tokenizer, begin: str, answers: Sequence[str]) -> None:
  """Raises TokenizerError if the template changes an answer; `begin`: the prompt before it."""
  for text in answers:
    whole = words.chat([*words.opening(_QUESTION), *_talk(text)])
    expected = begin + text
    if not whole.startswith(expected):
      raise TokenizerError(
        f"chat template: behind an answer it writes {whole[: len(expected)]!r:.300}, expected "
        f"{expected!r:.300}, as the model has read it: {_REMEDY}"
      )


def _require_as_read(words: Tokenizer, answers: Sequence[str], role: str, *, exact: bool) -> None:
  """Raises TokenizerError unless a chat of two answers reads as the template writes it.

  Tokens are compared with those of the whole text, and, if they differ, of its parts: answers and
  what is between them. A tokenizer may merge the end of a prompt with the beginning of an answer,
  but nobody samples such a token: the model goes on behind the prompt that was read. What the
  environment says ends the turn before with a token of its own, so nothing is merged there.

  Args:
    role: of the messages behind each answer.
    exact: else tags of thoughts and white space may differ.
  """
  messages = list(words.opening(_QUESTION))
  for answer, texts in zip(answers, _TOLD[role], strict=True):
    messages.append({"role": "assistant", "content": answer})
    messages += [{"role": role, "content": text} for text in texts]
  try:
    whole = words.chat(messages)
    replies = [words.reply(texts, role, None) for texts in _TOLD[role]]
  except TokenizerError as error:
    raise TokenizerError(
      f"chat template: it can't write messages of role {role!r} behind two answers, as the "
      f"environment says them: {error}"
    ) from None
  read = words.encode(words.chat(words.opening(_QUESTION)))
  for answer, texts, reply in zip(answers, _TOLD[role], replies, strict=True):
    end = _end_of_turn(words, reply)
    read += words.encode(answer) + end + words.reply(texts, role, end[-1])
  written = words.encode(whole)
  if exact and read not in (written, _in_parts(words, whole, answers)):
    _refuse(words, role, read, written)
  if not exact and _bare(words.decode_special(read)) != _bare(words.decode_special(written)):
    _refuse(words, role, read, written)


def _end_of_turn(words: Tokenizer, reply: Sequence[int]) -> list[int]:
  """The tokens with which the model ends a turn that `reply` follows, as the template has them."""
  marks = list(itertools.takewhile(words.special.__contains__, reply))
  size = next((i for i, token in enumerate(reply, 1) if token in words.ends), None)
  if size is None or size > len(marks) + 1:
    raise TokenizerError(
      f"chat template: behind an answer it writes {words.decode_special(reply)!r:.100}, expected a "
      f"token that ends a completion ({describe_ends(words)}; sampler.stop may name others)"
    )
  return list(reply[:size])


def _in_parts(words: Tokenizer, whole: str, answers: Sequence[str]) -> list[int]:
  """Token ids of a chat whose answers, and what is between them, are encoded one by one."""
  ids: list[int] = []
  for answer in reversed(answers):
    whole, found, behind = whole.rpartition(answer)
    ids = words.encode(found) + words.encode(behind) + ids
  return words.encode(whole) + ids


def _refuse(words: Tokenizer, role: str, read: list[int], written: list[int]) -> None:
  texts = [words.decode_special(ids) for ids in (written, read)]
  same = max(common(*texts) - _AROUND, 0)
  shown = [text[same:] for text in texts]
  if shown[0] == shown[1]:  # as other tokens
    shown = [words.token_texts(ids[common(read, written) :][:8]) for ids in (written, read)]
  raise TokenizerError(
    f"chat template: of two answers, each before messages of role {role!r}, it writes "
    f"{shown[0]!r:.200}, expected {shown[1]!r:.200}, as the model has read it"
  )


def _bare(text: str) -> str:
  """The text without tags of thoughts and white space."""
  for tag in thoughts.ALL_TAGS:
    text = text.replace(tag, "")
  return "".join(text.split())


def _require_only_thoughts(text: str) -> None:
  """Raises TokenizerError if the template writes more than tags of thoughts before an answer."""
  before, _, behind = text.partition(_ANSWER)
  if _bare(before) or not behind:
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
