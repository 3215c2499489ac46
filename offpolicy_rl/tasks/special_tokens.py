"""The special tokens that the small files of a published checkpoint name, the tokenizer with them,
and the ends of completions.

Reads as transformers 5 does (tokenization_utils_base.py): if tokenizer_config.json lists its added
tokens, special_tokens_map.json and added_tokens.json do not count; if not, they do, and the map
goes before tokenizer_config.json.
"""

import json
from typing import Any, NamedTuple, TypeVar

import tokenizers

from offpolicy_rl import types

CONFIG, TOKENIZER, SETTINGS = "config.json", "tokenizer.json", "tokenizer_config.json"
GENERATION, MAP, ADDED = "generation_config.json", "special_tokens_map.json", "added_tokens.json"
_DECODER, _EOS_ID = "added_tokens_decoder", "eos_token_id"
_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# Defaults of transformers' classes for keys that tokenizer_config.json lacks; null counts as one.
_OF_CLASSES = {
  "Gemma": dict(
    bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>", mask_token="<mask>"
  ),
  "GPT2": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
  "Llama": dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>"),
  "Qwen2": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}
_KINDS: dict[type, str] = {
  dict: "an object",
  list: "a list",
  str: "a text",
  int: "a whole number",
  bool: "true or false",
}
T = TypeVar("T")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Keys of generation_config.json that change what transformers generates. A run samples as its own
# configuration says. None and these values change nothing.
_UNIT = ("top_p", "typical_p", "temperature", "repetition_penalty", "encoder_repetition_penalty")
_NO_PENALTY = ("min_p", "presence_penalty", "frequency_penalty", "epsilon_cutoff", "eta_cutoff")
_NO_LIMIT = ("top_k", "no_repeat_ngram_size", "min_length", "min_new_tokens")
_NOTHING = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "stop_strings")
_NOT_FOLLOWED = (
  dict.fromkeys(_UNIT, 1.0)
  | dict.fromkeys(_NO_PENALTY, 0.0)
  | dict.fromkeys(_NO_LIMIT, 0)
  | {key: [] for key in _NOTHING}
  | {"num_beams": 1, "sequence_bias": {}, "forced_bos_token_id": None, "forced_eos_token_id": None}
)


class TokenizerError(ValueError):
  """A tokenizer that can't be used; names the file and what is missing."""


class Added(NamedTuple):
  """A token that tokenizer.json may lack."""

  token: tokenizers.AddedToken
  id: int | None  # where the file says so
  file: str


class SpecialTokens(NamedTuple):
  """Special tokens and settings from the small files."""

  named: dict[str, str]  # "bos_token" -> its text, ...
  variables: dict[str, str]  # of chat templates: the same, and defaults of transformers
  added: list[Added]  # in the order in which they get their ids
  settings: dict  # tokenizer_config.json


def parse(text: str, file: str) -> dict:
  """The object in a JSON file, {} for an empty text; TokenizerError for anything else."""
  try:
    keys = json.loads(text) if text else {}
  except (ValueError, RecursionError) as error:
    raise TokenizerError(f"{file}: no JSON: {error}") from None
  return expect(keys, dict, file)


def expect(value: Any, kind: type[T], where: str) -> T:
  """`value`; TokenizerError if it is no `kind`."""
  if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
    raise TokenizerError(f"{where}: got {value!r:.80}, expected {_KINDS[kind]}")
  return value


def read(files: types.ModelFiles) -> SpecialTokens:
  """Merges tokenizer_config.json, special_tokens_map.json and added_tokens.json.

  TokenizerError if one is no JSON, or names tokens differently from transformers.
  """
  settings = parse(files.tokenizer_config, SETTINGS)
  if not settings.get("tokenizer_class"):
    settings |= {"tokenizer_class": parse(files.config, CONFIG).get("tokenizer_class")}
  added = []
  if _DECODER in settings:
    where = f"{SETTINGS}: {_DECODER}"
    decoder = expect(settings[_DECODER], dict, where)
    added = [
      Added(_token(value, f"{where}: {key}"), _number(key, where), where)
      for key, value in decoder.items()
    ]
    sources = [(SETTINGS, settings)]
  else:
    sources = [(SETTINGS, settings), (MAP, parse(files.special_tokens_map, MAP))]
  named, extra = {}, []
  for file, keys in sources:
    named |= _named(keys, file)
    extra += _extra(keys, file)
  texts = {token.content for token in (*named.values(), *extra)}
  if _DECODER not in settings:
    added = _listed(parse(files.added_tokens, ADDED), texts)
  added.sort(key=lambda a: a.id)
  known = {a.token.content for a in added}
  added += [Added(t, None, SETTINGS) for t in (*named.values(), *extra) if t.content not in known]
  texts = {name: token.content for name, token in named.items()}
  defaults = _OF_CLASSES.get(_class(files.tokenizer, settings), {})
  variables = {key: text for key, text in defaults.items() if key not in settings} | texts
  return SpecialTokens(texts, variables, added, settings)


def _class(tokenizer: str, settings: dict) -> str:  # in transformers, e.g. "Llama"
  kind = str(settings.get("tokenizer_class")).removesuffix("Fast").removesuffix("Tokenizer")
  if kind == "Llama" and '"ByteLevel"' in tokenizer:
    return ""  # transformers takes another class for it
  return kind


def load(text: str, special: SpecialTokens) -> tokenizers.Tokenizer:
  """tokenizer.json with all special tokens, without truncation, padding and dropout.

  Raises:
    TokenizerError: it can't be read, or gives a token another id than the file that names it.
  """
  try:
    inner = tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # tokenizers raises a bare Exception
    raise TokenizerError(f"{TOKENIZER}: {error}") from None
  inner.no_truncation()
  inner.no_padding()
  inner.encode_special_tokens = bool(special.settings.get("split_special_tokens"))
  if getattr(inner.model, "dropout", None):
    inner.model.dropout = None  # it splits the same text differently at every call
  spaces = _llama_spaces(text, special.settings)
  if spaces is not None:
    _put_spaces(inner, spaces)
  known = {token.content for token in inner.get_added_tokens_decoder().values()}
  eos = special.named.get("eos_token")
  if eos is not None and inner.token_to_id(eos) is None:
    known.add(eos)  # not added: `tokenizer` refuses it
  is_new = lambda a: a.id is not None or a.token.content not in known
  # Some files write an empty text for no token.
  added = [a for a in special.added if a.token.content and is_new(a)]
  inner.add_tokens([a.token for a in added])
  for a in added:
    number = inner.token_to_id(a.token.content)
    if number is None or a.id not in (None, number):
      raise TokenizerError(
        f"{a.file}: {a.token.content!r} has id {a.id}, but {number} by {TOKENIZER} and the tokens "
        "before it"
      )
  return inner


def _llama_spaces(tokenizer: str, settings: dict) -> str | None:
  """Texts before which Llama's class in transformers puts a space, whatever tokenizer.json says.

  "first": before the text as a whole; "always": behind special tokens, too; "never". None:
  tokenizer.json decides, as for any other class.
  """
  if _class(tokenizer, settings) != "Llama":
    return None
  if settings.get("add_prefix_space") not in (None, True):
    return "never"
  return "always" if settings.get("legacy") else "first"


def _put_spaces(inner: tokenizers.Tokenizer, before: str) -> None:
  """Puts spaces as transformers' class of Llama does; `before`: `_llama_spaces`."""
  inner.normalizer = None
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace("▁", before, split=False)
  decoders = tokenizers.decoders
  strip = [] if before == "never" else [decoders.Strip(" ", 1, 0)]
  inner.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
  )


def require_unicode(text: str) -> None:
  r"""TokenizerError for half of a surrogate pair (\ud83d): JSON can write it, UTF-8 can't."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise TokenizerError(
      f"a text: got half of a surrogate pair, {text[error.start]!r}, at character {error.start}, "
      "expected Unicode text"
    ) from None


def _named(keys: dict, file: str) -> dict[str, tokenizers.AddedToken]:
  """Key -> token for each key that names one: the usual ones, and others that end in _token."""
  tokens = {}
  for key, value in keys.items():
    is_token = isinstance(value, str) or (isinstance(value, dict) and "content" in value)
    if value is not None and (key in _NAMES or (key.endswith("_token") and is_token)):
      tokens[key] = _token(value, f"{file}: {key}", special=True)
  for where in ("model_specific_special_tokens", "extra_special_tokens"):
    more = keys.get(where)
    for key, value in (more if isinstance(more, dict) else {}).items():
      tokens[key] = _token(value, f"{file}: {where}: {key}", special=True)
  return tokens


def _extra(keys: dict, file: str) -> list[tokenizers.AddedToken]:
  for key in ("extra_special_tokens", "additional_special_tokens"):
    if keys.get(key):
      if key == "extra_special_tokens" and isinstance(keys[key], dict):
        return []
      listed = expect(keys[key], list, f"{file}: {key}")
      return [_token(value, f"{file}: {key}", special=True) for value in listed]
  return []


def _listed(entries: dict, special: set[str]) -> list[Added]:
  return [
    Added(
      tokenizers.AddedToken(text, normalized=text not in special, special=text in special),
      _number(number, f"{ADDED}: {text}"),
      ADDED,
    )
    for text, number in entries.items()
  ]


def _token(value, where: str, *, special: bool = False) -> tokenizers.AddedToken:
  fields = value if isinstance(value, dict) else {"content": value}
  content = expect(fields.get("content"), str, where)
  flags = {flag: fields[flag] for flag in _FLAGS if flag in fields}
  if special:
    flags["special"] = True
  try:
    return tokenizers.AddedToken(content, **flags)
  except (TypeError, UnicodeError) as error:
    raise TokenizerError(f"{where}: {error}") from None


def _number(value, where: str) -> int:
  try:
    number = int(value) if not isinstance(value, bool | float) else -1
  except (TypeError, ValueError):
    number = -1
  if number < 0:
    raise TokenizerError(f"{where}: got {value!r:.80}, expected the id of a token")
  return number


def end_ids(files: types.ModelFiles) -> list[tuple[str, int]]:
  """(file, key and value; id) of each end-of-sequence id; TokenizerError for anything but ids."""
  ends = []
  for file, text in ((GENERATION, files.generation_config), (CONFIG, files.config)):
    keys = parse(text, file)
    value = keys.get(_EOS_ID)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    where = f"{file}: {_EOS_ID}"
    ends += [(f"{where} {number}", expect(number, int, where)) for number in ids]
  return ends


def not_followed(files: types.ModelFiles) -> dict:
  """Keys of generation_config.json about sampling, which a run decides by its own keys."""
  return {
    key: value
    for key, value in parse(files.generation_config, GENERATION).items()
    if key in _NOT_FOLLOWED and value is not None and value != _NOT_FOLLOWED[key]
  }
