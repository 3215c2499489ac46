"""The tokenizer and chat template that come with a published checkpoint.

`tokenizer.json` is read by the `tokenizers` package, the chat template by jinja2's sandbox: it is
code from elsewhere.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence

import jinja2
import jinja2.sandbox
import tokenizers

from offpolicy_rl import types

CONFIG, TOKENIZER, SETTINGS = "config.json", "tokenizer.json", "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
_LONGEST_CHARACTER = 4  # bytes in UTF-8, each a token at worst


class TokenizerError(ValueError):
  """A tokenizer that can't be used; names the file and what is missing."""


class Tokenizer:
  """Text <-> token ids of a published model."""

  def __init__(self, files: types.ModelFiles, *, template: str = "{question}", chat: bool = True):
    """`template` and `chat`: how questions become prompts, see `prompt`.

    Raises:
      TokenizerError: a file can't be read, or names no end-of-sequence token that there is.
    """
    self._files, self._question, self._chat = files, template, chat
    try:
      self._inner = tokenizers.Tokenizer.from_str(files.tokenizer)
    except Exception as error:  # tokenizers raises a bare Exception
      raise TokenizerError(f"{TOKENIZER}: {error}") from None
    try:
      settings = json.loads(files.tokenizer_config)
    except ValueError as error:
      raise TokenizerError(f"{SETTINGS}: no JSON: {error}") from None
    self.size = self._inner.get_vocab_size()
    self.eos = self._id(settings, "eos_token")
    self._template = files.chat_template or settings.get("chat_template")
    self._special = {
      name: _content(settings[name]) for name in ("bos_token", "eos_token") if settings.get(name)
    }

  def _id(self, settings: dict, name: str) -> int:
    token = _content(settings.get(name))
    found = None if token is None else self._inner.token_to_id(token)
    if found is None:
      raise TokenizerError(f"{SETTINGS}: {name} {token!r} is no token of {TOKENIZER}")
    return found

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of the tokenizer: equal on both sides of the wire or the sampler is refused."""
    return hashlib.sha256(self._files.tokenizer.encode()).hexdigest()[:16]

  def prompt(self, question: str) -> list[int]:
    """Token ids of a question put into the template; as a chat's first message where asked."""
    text = self._question.replace("{question}", question)
    return self.encode(self.chat([{"role": "user", "content": text}]) if self._chat else text)

  def stops(self, texts: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(ids of those that are special tokens, the others)."""
    special = {t.content: i for i, t in self._inner.get_added_tokens_decoder().items() if t.special}
    ids = tuple(special[text] for text in texts if text in special)
    return ids, tuple(text for text in texts if text not in special)

  def encode(self, text: str) -> list[int]:
    """Token ids; special tokens in the text count, none are added."""
    return self._inner.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    """Text up to the first end-of-sequence token, special tokens left out."""
    ids = list(ids)
    end = ids.index(self.eos) if self.eos in ids else len(ids)
    return self._inner.decode(ids[:end])

  def texts(self, ids: Sequence[int]) -> list[str]:
    """What each token adds, special ones by name; a character of several tokens is the last's."""
    text = lambda part: self._inner.decode(part, skip_special_tokens=False)
    found, start, end = [], 0, 0  # ids[start:end]: the token before; it decides about spaces
    for i in range(len(ids)):
      before, now = text(ids[start:end]), text(ids[start : i + 1])
      if now.endswith("\ufffd") and i + 1 - end < _LONGEST_CHARACTER:
        found.append("")
      else:
        found.append(now[len(before) :])
        start, end = end, i + 1
    return found

  def chat(self, messages: Sequence[dict[str, str]]) -> str:
    """Messages {"role", "content"} as the model saw them in training, and its turn opened.

    Raises:
      TokenizerError: there is no template, or it does not accept these messages.
    """
    if not self._template:
      raise TokenizerError("no chat template in the checkpoint; set task.chat=False")

    def refuse(message: str):
      """What templates call `raise_exception`."""
      raise TokenizerError(f"chat template: {message}")

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    try:
      template = environment.from_string(self._template)
      return template.render(messages=list(messages), add_generation_prompt=True, **self._special)
    except jinja2.TemplateError as error:
      refuse(str(error))


def read_files(directory: pathlib.Path) -> types.ModelFiles:
  """The small files of a published checkpoint; TokenizerError names the one that is missing."""
  found = []
  for name in (CONFIG, TOKENIZER, SETTINGS, TEMPLATE):
    path = directory / name
    if not path.is_file() and name != TEMPLATE:
      raise TokenizerError(f"{path}: no such file")
    found.append(path.read_text() if path.is_file() else "")
  return types.ModelFiles(*found)


def _content(token) -> str | None:
  """A token is written as a string or as an object."""
  return token["content"] if isinstance(token, dict) else token


_QWEN2_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
  r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens in a GGUF file


def _pre_tokenizer(kind: str):
  """How text is split before pairs are merged, by the name that GGUF files use."""
  pre, level = tokenizers.pre_tokenizers, tokenizers.pre_tokenizers.ByteLevel
  if kind == "smollm":
    return pre.Sequence([pre.Digits(individual_digits=True), level(add_prefix_space=False)])
  if kind == "qwen2":
    split = pre.Split(tokenizers.Regex(_QWEN2_SPLIT), "isolated")
    return pre.Sequence([split, level(add_prefix_space=False, use_regex=False)])
  raise TokenizerError(f"tokenizer.ggml.pre: got {kind!r}, supported: smollm, qwen2")


def write_from_gguf(file, directory: pathlib.Path) -> None:
  """Writes the tokenizer of an opened GGUF file (`file.get(key, default)`) as published ones are.

  Raises:
    TokenizerError: it is no byte-level BPE, or splits text in an unknown way.
  """
  model = file.get("tokenizer.ggml.model")
  if model != "gpt2":
    raise TokenizerError(f"tokenizer.ggml.model: got {model!r}, supported: gpt2 (byte-level BPE)")
  tokens = file.get("tokenizer.ggml.tokens")
  merges = [tuple(pair.split(" ", 1)) for pair in file.get("tokenizer.ggml.merges")]
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
  )
  inner.pre_tokenizer = _pre_tokenizer(file.get("tokenizer.ggml.pre"))
  inner.decoder = tokenizers.decoders.ByteLevel()
  kinds = file.get("tokenizer.ggml.token_type")
  special = [t for t, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
  inner.add_special_tokens([tokenizers.AddedToken(t, special=True) for t in special])
  settings = {
    name: tokens[file.get(f"tokenizer.ggml.{key}")]
    for name, key in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id"))
    if file.get(f"tokenizer.ggml.{key}", -1) >= 0
  }
  directory.mkdir(parents=True, exist_ok=True)
  inner.save(str(directory / TOKENIZER))
  (directory / SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
  template = file.get("tokenizer.chat_template", "")
  if template:
    (directory / TEMPLATE).write_text(template)
