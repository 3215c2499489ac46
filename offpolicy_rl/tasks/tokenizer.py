"""The tokenizer of a published checkpoint: text <-> token ids, prompts, ends of completions.

`special_tokens.py` reads `tokenizer.json`, with the `tokenizers` package, and what the other small
files say about special tokens; `chat.py` renders chat templates.
"""

import datetime
import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence

from offpolicy_rl import types
from offpolicy_rl.system import nearby
from offpolicy_rl.tasks import chat, gguf_tokenizer, special_tokens, stop_texts, thoughts
from offpolicy_rl.tasks.special_tokens import CONFIG, SETTINGS, TOKENIZER, TokenizerError
from offpolicy_rl.tasks.vocabulary import Vocabulary

TEMPLATE = chat.TEMPLATE
write_from_gguf = gguf_tokenizer.write
_LONGEST_CHARACTER = 4  # bytes in UTF-8, each a token at worst
_QUESTION = "1 + 1?"  # rendered to examine a template
_PROBE = "0123456789"  # of a completion, to find what a template writes behind one


class Tokenizer:
  """Text <-> token ids of a published model."""

  def __init__(
    self,
    files: types.ModelFiles,
    *,
    template: str = "{question}",
    chat: bool = True,
    system: str = "",
    arguments: dict | None = None,
    day: datetime.date | None = None,
    vocab_size: int | None = None,
    stop: Sequence[str] = (),
  ):
    """Reads the files.

    Args:
      template: of a prompt, with {question} in it.
      chat: the question is the first message of a chat, in the checkpoint's template.
      system: text of a system message before it; "" = none.
      arguments: variables of the chat template.
      day: the date that templates see; None = today.
      vocab_size: rows of the model's embedding; tokens beyond can't be used. None = enough.
      stop: special tokens and other texts that end a completion besides the checkpoint's.

    Raises:
      TokenizerError: a file can't be read, names a missing token, or no file names a token that
        ends a text.
    """
    self._files, self._question, self.in_chat, self._system = files, template, chat, system
    self._arguments, self._day = arguments or {}, day or datetime.date.today()
    self._templates = {}  # for chats with tools (True) or without
    self._special = special_tokens.read(files)
    self._inner = special_tokens.load(files.tokenizer, self._special)
    self.size = 1 + max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1)
    self._usable = self.size if vocab_size is None else min(vocab_size, self.size)
    added = self._inner.get_added_tokens_decoder()
    self.special = {i: token.content for i, token in added.items() if token.special}
    self._thoughts = {i for i, text in self.special.items() if text in thoughts.ALL_TAGS}
    ids = {text: i for i, text in self.special.items()}
    self.ends = tuple(dict.fromkeys([*self._ends(), *(ids[text] for text in stop if text in ids)]))
    self.stop_texts = tuple(text for text in stop if text not in ids)
    self.eos = self.ends[0]

  def _ends(self) -> list[int]:
    eos = self._special.named.get("eos_token")
    of_class = self._special.variables.get("eos_token", "")
    if eos is None and self._inner.token_to_id(of_class) is not None:
      eos = of_class
    named = [(f"{SETTINGS}: eos_token {eos!r}", self._inner.token_to_id(eos))] if eos else []
    named += special_tokens.end_ids(self._files)
    ends = []
    for where, number in named:
      if number is None or self._text(number) is None:
        raise TokenizerError(f"{where} is no token of {TOKENIZER}")
      if number >= self._usable:
        raise TokenizerError(f"{where}: expected an id below vocab_size = {self._usable}")
      ends.append(number)
    if not ends:
      raise TokenizerError(
        f"{SETTINGS}: eos_token missing, expected it there or an eos_token_id in "
        f"{special_tokens.GENERATION} or {CONFIG}: a token that ends a completion"
      )
    return ends

  @functools.cached_property
  def pieces(self) -> tuple[str | None, ...]:
    """The token of each id that the model can use, as TOKENIZER writes it; None = there is none."""
    return tuple(self._text(i) for i in range(self._usable))

  def _text(self, number: int) -> str | None:
    return self._inner.id_to_token(number) if 0 <= number < self.size else None

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of all that decides ids, texts, prompts and ends; a sampler must have the same."""
    return hashlib.sha256(json.dumps([*self._files, self.ends]).encode()).hexdigest()[:16]

  def _template(self, *, tools: bool) -> chat.ChatTemplate:
    if tools not in self._templates:
      source = chat.source(self._files, tools=tools)
      if source is None:
        raise TokenizerError("no chat template in the checkpoint; set task.chat=False")
      variables = self._special.variables | self._arguments
      self._templates[tools] = chat.ChatTemplate(source, variables, self._day)
    return self._templates[tools]

  def chat(self, messages: Sequence[dict[str, str]], *, opened: bool = True) -> str:
    """Text of messages {"role", "content"}; `opened`: with the beginning of the model's turn.

    TokenizerError if there is no template, or it does not accept these messages.
    """
    return self._template(tools=self.shows_tools).render(messages, opened=opened)

  @property
  def shows_tools(self) -> bool:
    """Whether chats are rendered with the schemas of tools."""
    return self._arguments.get("tools") is not None

  def check(self) -> list[str]:
    """Renders the chat template once; returns notes on the tokenizer for people, a line each.

    TokenizerError if the template can't be used, or ordinary text has no embedding.
    """
    notes = [f"a completion ends with {describe_ends(self)}"]
    lost = [i for i in range(self._usable, self.size) if self._text(i) is not None]
    if lost and not set(lost) <= self._inner.get_added_tokens_decoder().keys():
      raise TokenizerError(
        f"{TOKENIZER}: got ids up to {self.size - 1}, expected all below vocab_size = "
        f"{self._usable}"
      )
    if lost:
      first = ", ".join(repr(self._text(i)) for i in lost[:3])
      what = "tokens without an embedding, which no prompt may contain"
      notes.append(f"{what}: {len(lost)}, {first}{' ...' if len(lost) > 3 else ''}")
    if chat.source(self._files, tools=False) is None:
      return [*notes, "no chat template: set task.chat=False"]
    self.encode(self._one_chat(notes))
    return notes + self.turn_notes()

  def turn_notes(self) -> list[str]:
    """A line if the chat template ends turns with a text that ends no completion."""
    behind = self._behind_turns if self.in_chat else []
    marks = [self.special[token] for token in behind if token in self.special]
    end = marks[0] if marks else self.decode_special(behind).strip()
    ends = set(behind) & set(self.ends) or stop_texts.first(end, self.stop_texts) is not None
    if not end or ends:
      return []
    return [
      f"the chat template ends a turn with {end!r:.40}, but no file says that it ends a "
      "completion: see sampler.stop"
    ]

  def tool_notes(self) -> list[str]:
    """A line if the chat template leaves out the schemas of tools."""
    if not (self.in_chat and self.shows_tools):
      return []
    asked = self.opening(_QUESTION)
    if self.chat(asked) != self._template(tools=True).render(asked, opened=True, tools=None):
      return []
    return ["the chat template does not show tools: describe them in task.system_prompt"]

  def _one_chat(self, notes: list[str]) -> str:
    """A chat of one question; adds a system message, and a note, if the template needs it."""
    question = {"role": "user", "content": _QUESTION}
    try:
      text = self.chat([question])
    except TokenizerError as error:
      try:
        text = self.chat([{"role": "system", "content": "Be brief."}, question])
      except TokenizerError:
        raise error from None
      notes.append("the chat template needs a system message: set task.system_prompt")
    _require_question(text)
    return text

  def prompt(self, question: str, messages: Sequence[dict[str, str]] = ()) -> list[int]:
    """Token ids of a question in the template, as the first message of a chat if there is one.

    `messages`: a chat whose last message is the question; `question` is then all of it as a text.

    Without a chat it begins as the tokenizer begins texts, with or without a beginning-of-sequence
    token. Tokens that the tokenizer would put at the end are left out.
    """
    opening = self.opening(question, messages)
    text = opening[-1]["content"]
    if self.in_chat:
      rendered = self.chat(opening)
      if text.strip() not in rendered:  # some templates change the text
        _require_question(self.chat(self._messages(_QUESTION)))
      return self.encode(rendered)
    return self._begun(text)

  def opening(self, question: str, messages: Sequence[dict[str, str]] = ()) -> list[dict[str, str]]:
    """The messages that `prompt` renders; the tokens of their `conversation` are the same."""
    last = messages[-1]["content"] if self.in_chat and messages else question
    text = self._question.replace("{question}", last)
    return self._messages(text, messages[:-1]) if self.in_chat else [_user(text)]

  def _messages(self, text: str, before: Sequence[dict] = ()) -> list[dict[str, str]]:
    has_own = any(message["role"] == "system" for message in before)
    system = [{"role": "system", "content": self._system}] if self._system and not has_own else []
    return [*system, *before, _user(text)]

  @functools.cached_property
  def _beginning(self) -> list[int]:  # ids that the tokenizer puts before a text
    text = self._inner.encode(self._text(self.eos))  # any text that is made of tokens
    added = [*text.special_tokens_mask, 0]
    return text.ids[: added.index(0)]

  def _begun(self, text: str) -> list[int]:  # ids of a text, as the tokenizer begins texts
    ids, begin = self.encode(text), self._beginning
    return ids if ids[: len(begin)] == begin else begin + ids

  def conversation(self, messages: Sequence[dict], tools: Sequence[dict] = ()) -> list[int]:
    """Token ids of a chat, up to the beginning of the model's turn.

    Unlike `prompt` it adds nothing: neither system message nor template of questions. Without a
    chat the texts of the messages alone.

    Args:
      messages: as the chat template takes them.
      tools: JSON schemas of functions, for the template.

    Raises:
      TokenizerError: the template does not take them, a message has a special token in it, or a
        token has no embedding.
    """
    for i, message in enumerate(messages):
      told = json.dumps(message, ensure_ascii=False)
      for number, token in self.special.items():
        if token in told and number not in self._thoughts:
          raise TokenizerError(f"messages[{i}]: got the special token {token!r:.60} in a text")
    if not self.in_chat:
      if tools:
        raise TokenizerError("tools: got some, expected none without a chat template")
      return self._begun("".join(message["content"] for message in messages))
    template, offered = self._template(tools=bool(tools)), list(tools) or None
    text = template.render(messages, opened=True, tools=offered)
    if tools and text == template.render(messages, opened=True, tools=None):
      raise TokenizerError("tools: got some, but the chat template does not show them to the model")
    return self.encode(text)

  def reply(self, texts: Sequence[str], role: str, last: int | None) -> list[int]:
    """Token ids of what follows a turn of the model: messages, and the begin of its next turn.

    Those of the chat template; without a chat the texts alone.

    Args:
      role: of the messages, "user" or "tool".
      last: token of the model's turn, None = there was none. An end of turn is not repeated.

    Raises:
      TokenizerError: the template does not take the messages, a text has a special token in it, or
        a token has no embedding.
    """
    for text in texts:
      self.require_plain(text)
    if not self.in_chat:
      return self.encode("".join(texts))
    messages = [{"role": role, "content": text} for text in texts]
    return self.behind_turn(self._answered(messages).partition(self._probe)[2], last)

  def behind_turn(self, text: str, last: int | None) -> list[int]:
    """Token ids of a text that begins with the end of a turn of the model, without what it wrote.

    `last`: token of the turn; of several special tokens that end one, those up to it are left out.
    """
    ids = self.encode(text)
    ends = list(itertools.takewhile(self.special.__contains__, self._behind_turns))
    written = ends[: ends.index(last) + 1] if last in ends else [last]
    return ids[len(written) :] if ids[: len(written)] == written else ids

  def _answered(self, messages: list[dict[str, str]]) -> str:
    """A chat in which the model has said `_probe`, was answered, and begins its next turn."""
    before = [*self._messages(_QUESTION), {"role": "assistant", "content": self._probe}]
    return self.chat([*before, *messages])

  @functools.cached_property
  def _probe(self) -> str:
    """A completion that is in no text before it: system message, schemas of tools, ..."""
    before, probe = self.chat(self._messages(_QUESTION)), _PROBE
    while probe in before:
      probe += _PROBE
    return probe

  def require_plain(self, text: str, *, by_model: bool = False) -> None:
    """Raises TokenizerError for the text of a special token; `by_model`: thoughts have tags."""
    for number, token in self.special.items():
      if token in text and not (by_model and number in self._thoughts):
        raise TokenizerError(f"a message: got the special token {token!r:.60}, expected plain text")

  @functools.cached_property
  def turn_end(self) -> int:
    """The token with which the model ends its turn, and demonstrations end.

    In a chat the first of `ends` that the template writes behind a message of the model, else
    `eos`.
    """
    behind = self._behind_turns if self.in_chat else []
    return next((token for token in behind if token in self.ends), self.eos)

  @functools.cached_property
  def _behind_turns(self) -> list[int]:
    """Tokens that the template writes behind a message of the model; [] if it takes none."""
    messages = [*self._messages(_QUESTION), {"role": "assistant", "content": _PROBE}]
    try:
      _, probe, behind = self.chat(messages, opened=False).rpartition(_PROBE)
      return self.encode(behind) if probe else []
    except TokenizerError:
      return []

  def encode(self, text: str) -> list[int]:
    """Token ids of a text; TokenizerError for a token without embedding, or no Unicode text."""
    special_tokens.require_unicode(text)
    ids = self._inner.encode(text, add_special_tokens=False).ids
    if max(ids, default=-1) >= self._usable:
      token = max(ids)
      raise TokenizerError(
        f"{TOKENIZER}: token {self._text(token)!r} in {text!r:.80} has id {token}, but the "
        f"model has embeddings of {self._usable} tokens only"
      )
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    """Text of a completion, up to the token or text that ends it."""
    before_end = list(itertools.takewhile(lambda i: i not in self.ends, ids))
    return stop_texts.before(before_end, self.stop_texts, self.decode_all, self.decode_special)

  def decode_all(self, ids: Iterable[int]) -> str:
    """Text of all tokens, also past the end of a completion, without special tokens.

    Tags around thoughts stay: verifiers have to see where the answer begins.
    """
    if not self._thoughts:
      return self._inner.decode(list(ids))
    parts = itertools.groupby(ids, key=lambda i: i in self._thoughts)
    return "".join(
      self.decode_special(part) if tags else self._inner.decode(list(part)) for tags, part in parts
    )

  def decode_special(self, ids: Iterable[int]) -> str:
    """Text of all tokens, special ones by name."""
    return self._inner.decode(list(ids), skip_special_tokens=False)

  def token_texts(self, ids: Sequence[int]) -> list[str]:
    """Text of each token, special ones by name; a character of several tokens is the last's."""
    texts, start, end = [], 0, 0  # ids[start:end]: the token before, which decides spaces
    for i in range(len(ids)):
      before, now = self.decode_special(ids[start:end]), self.decode_special(ids[start : i + 1])
      if now.endswith("\ufffd") and i + 1 - end < _LONGEST_CHARACTER:
        texts.append("")
      else:
        texts.append(now[len(before) :])
        start, end = end, i + 1
    return texts


def _user(text: str) -> dict[str, str]:
  return {"role": "user", "content": text}


def _require_question(rendered: str) -> None:
  """Refuses templates that leave out a question given as a text, not in parts."""
  if _QUESTION not in rendered:
    raise TokenizerError(
      f"chat template: it leaves out the question {_QUESTION!r} and writes {rendered!r:.80}; "
      "expected one that reads messages whose content is a text, or task.chat=False"
    )


def describe_ends(tokenizer: Tokenizer | Vocabulary) -> str:
  """The tokens that end a completion, for people."""
  return ", ".join(f"{tokenizer.decode_special([token])!r} ({token})" for token in tokenizer.ends)


def notes(files: types.ModelFiles) -> list[str]:
  """Notes where a run samples differently from what the checkpoint's files say, a line each."""
  ignored = special_tokens.not_followed(files)
  if not ignored:
    return []
  values = ", ".join(f"{key} = {value!r:.40}" for key, value in ignored.items())
  return [f"{special_tokens.GENERATION}: {values}: not followed, sampler.* say how to sample"]


def read_files(directory: pathlib.Path) -> types.ModelFiles:
  """The small files of a published checkpoint; TokenizerError if one is missing or not UTF-8."""
  more = directory / chat.MORE_TEMPLATES
  templates = {p.stem: _read(p, needed=True) for p in sorted(more.glob("*.jinja"))}
  return types.ModelFiles(
    config=_read(directory / CONFIG, needed=True),
    tokenizer=_read(directory / TOKENIZER, needed=True),
    tokenizer_config=_read(directory / SETTINGS, needed=True),
    chat_template=_read(directory / TEMPLATE),
    more_chat_templates=json.dumps(templates) if templates else "",
    generation_config=_read(directory / special_tokens.GENERATION),
    special_tokens_map=_read(directory / special_tokens.MAP),
    added_tokens=_read(directory / special_tokens.ADDED),
  )


def _read(path: pathlib.Path, *, needed: bool = False) -> str:
  if not path.is_file():
    if needed:
      hint = (
        "; transformers writes it from older files: "
        "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
      ) * (path.name in (TOKENIZER, SETTINGS))
      if path.name == CONFIG:
        hint = (
          ", expected the files of a published model in the directory that model.checkpoint names; "
          "none is downloaded: hf download NAME --local-dir=DIRECTORY gets them"
        )
      raise TokenizerError(f"{path}: no such file{hint}{nearby.files(path)}")
    return ""
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeError as error:
    raise TokenizerError(f"{path}: no UTF-8 text: {error}") from None
