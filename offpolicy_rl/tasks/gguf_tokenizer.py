"""Tokenizers of GGUF files, as the small files of published checkpoints."""

import json
import pathlib
from typing import Any

import tokenizers

from offpolicy_rl.tasks import chat, special_tokens
from offpolicy_rl.tasks.special_tokens import TokenizerError

_QWEN2_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
  r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # kinds of tokens in a GGUF file
# Names of tokens: tokenizer_config.json -> metadata after "tokenizer.ggml.".
_NAMED = {
  "bos_token": "bos_token_id",
  "eos_token": "eos_token_id",
  "unk_token": "unknown_token_id",
  "pad_token": "padding_token_id",
}
# Qwen2.5 and Qwen3 say this in files that converters to GGUF ignore or misread.
_QWEN = "qwen2"
_QWEN_TEXTS = str.split(  # converters mistake them for control tokens
  "<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
)
_QWEN_END = "<|endoftext|>"  # ends a completion, too; as bos_token_id it begins nothing
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a text, of a turn, of a message


class _Metadata:
  def __init__(self, file):
    self._file = file

  def value(self, key: str, kind: type, default=None):
    full = f"tokenizer.ggml.{key}"
    return special_tokens.expect(self._file.get(full, default), kind, full)

  def texts(self, key: str) -> list[str]:
    texts = self.value(key, list)
    return [special_tokens.expect(text, str, f"tokenizer.ggml.{key}") for text in texts]

  def token_id(self, key: str, size: int) -> int | None:
    number = self.value(key, int, -1)
    if number >= size:
      raise TokenizerError(f"tokenizer.ggml.{key}: got {number}, expected one of {size} tokens")
    return number if number >= 0 else None


def write(file: Any, directory: pathlib.Path) -> None:
  """Writes the tokenizer of an opened GGUF file (`file.get(key, default)`) as published ones are.

  TokenizerError if it is no byte-level BPE, splits text in an unknown way, or has bad metadata.
  """
  metadata = _Metadata(file)
  model = metadata.value("model", str)
  if model != "gpt2":
    raise TokenizerError(f"tokenizer.ggml.model: got {model!r}, supported: gpt2 (byte-level BPE)")
  tokens, pre = metadata.texts("tokens"), metadata.value("pre", str)
  inner = _bpe(metadata, tokens, pre)
  named = {name: metadata.token_id(key, len(tokens)) for name, key in _NAMED.items()}
  named = {name: tokens[number] for name, number in named.items() if number is not None}
  bos, begins = named.get("bos_token"), metadata.value("add_bos_token", bool, False)
  if bos == _QWEN_END and pre == _QWEN and not begins:
    del named["bos_token"]
  if bos is not None and begins:
    inner.post_processor = tokenizers.processors.TemplateProcessing(
      single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[(bos, tokens.index(bos))]
    )
  ends = [metadata.token_id(key, len(tokens)) for key in _ENDS]
  if pre == _QWEN:
    ends.append(inner.token_to_id(_QWEN_END))
  generation = {"eos_token_id": [*dict.fromkeys(end for end in ends if end is not None)]}
  directory.mkdir(parents=True, exist_ok=True)
  inner.save(str(directory / special_tokens.TOKENIZER))
  _write_json(directory / special_tokens.SETTINGS, named)
  _write_json(directory / special_tokens.GENERATION, generation)
  _write_templates(file, directory)


def _write_templates(file, directory: pathlib.Path) -> None:
  key = "tokenizer.chat_template"
  files = {key: directory / chat.TEMPLATE}
  for name in special_tokens.expect(file.get(f"{key}s", []), list, f"{key}s"):
    name = special_tokens.expect(name, str, f"{key}s")
    if not name.isidentifier():
      raise TokenizerError(f"{key}s: got {name!r:.80}, expected a name")
    files[f"{key}.{name}"] = directory / chat.MORE_TEMPLATES / f"{name}.jinja"
  for key, path in files.items():
    template = special_tokens.expect(file.get(key, ""), str, key)
    if template:
      path.parent.mkdir(exist_ok=True)
      path.write_text(template, encoding="utf-8")


def _write_json(path: pathlib.Path, value: dict) -> None:
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _bpe(metadata: _Metadata, tokens: list[str], pre: str) -> tokenizers.Tokenizer:
  """A tokenizer in which control tokens are special, and tokens defined by users are texts."""
  kinds = metadata.value("token_type", list)
  if len(kinds) != len(tokens):
    raise TokenizerError(f"tokenizer.ggml.token_type: got {len(kinds)}, expected {len(tokens)}")
  used = {t: i for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _UNUSED}
  merges: Any = [tuple(pair.split(" ", 1)) for pair in metadata.texts("merges")]  # of two each?
  try:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(used, merges))
  except Exception as error:  # tokenizers raises a bare Exception
    raise TokenizerError(f"tokenizer.ggml.merges: {error}") from None
  inner.normalizer, inner.pre_tokenizer = _splitting(pre)
  inner.decoder = tokenizers.decoders.ByteLevel()
  inner.add_tokens(
    [
      tokenizers.AddedToken(
        text,
        special=kind == _CONTROL and (pre != _QWEN or text not in _QWEN_TEXTS),
        normalized=False,
      )
      for text, kind in zip(tokens, kinds, strict=True)
      if kind in (_CONTROL, _USER_DEFINED)
    ]
  )
  return inner


def _splitting(kind: str):
  """(normalizer, pre-tokenizer) by the name that GGUF files use."""
  pre, level = tokenizers.pre_tokenizers, tokenizers.pre_tokenizers.ByteLevel
  if kind == "smollm":
    return None, pre.Sequence([pre.Digits(individual_digits=True), level(add_prefix_space=False)])
  if kind == _QWEN:
    split = pre.Split(tokenizers.Regex(_QWEN2_SPLIT), "isolated")
    both = pre.Sequence([split, level(add_prefix_space=False, use_regex=False)])
    return tokenizers.normalizers.NFC(), both
  raise TokenizerError(f"tokenizer.ggml.pre: got {kind!r}, supported: smollm, qwen2")
