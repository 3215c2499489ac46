"""Small tokenizers of the kinds that published models have."""

import json
import pathlib

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
QWEN_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2"), ("Ġ", "Ġ"), ("a", "b"), ("Ġ", "ab")]
_WORDS = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁"), ("1", "2"), ("a", "b"), ("▁", "ab")]


def byte_level(special: dict[str, int], *, plain: dict[str, int] | None = None, gpt2=False):
  """As Qwen's (or with `gpt2` SmolLM2's): tokens are byte strings.

  Args:
    special, plain: texts that are tokens, with their ids. The others get those that are left.
  """
  texts = [*BYTES, *dict.fromkeys("".join(pair) for pair in _MERGES)]
  inner = tokenizers.Tokenizer(models.BPE(_numbered(texts, special | (plain or {})), _MERGES))
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  if not gpt2:
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
      [
        pre_tokenizers.Split(tokenizers.Regex(QWEN_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
      ]
    )
  inner.decoder = decoders.ByteLevel()
  _add(inner, special, plain or {})
  return inner


def sentence_pieces(special: dict[str, int], *, plain: dict[str, int] | None = None, prefix=False):
  """As Gemma's (or with `prefix` Llama 2's): ▁ for spaces, bytes for unknown characters."""
  letters = [*"▁abcdefghijklmnopqrstuvwxyz0123456789.,?!+=", *(f"<0x{i:02X}>" for i in range(256))]
  texts = [*letters, *dict.fromkeys("".join(pair) for pair in _WORDS)]
  vocab = _numbered(texts, special | (plain or {}))
  inner = tokenizers.Tokenizer(
    models.BPE(vocab, _WORDS, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
  )
  spaces = normalizers.Replace(" ", "▁")
  strip = [decoders.Strip(" ", 1, 0)] if prefix else []
  inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
  if not prefix:
    inner.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  inner.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
  )
  _add(inner, special, plain or {})
  return inner


def begin_with(inner: tokenizers.Tokenizer, bos: str) -> tokenizers.Tokenizer:
  """With a token before every text."""
  inner.post_processor = processors.TemplateProcessing(
    single=[bos, "$A"],
    pair=[bos, "$A", bos, "$B:1"],
    special_tokens=[(bos, inner.token_to_id(bos))],
  )
  return inner


def _numbered(texts: list[str], taken: dict[str, int]) -> dict[str, int]:
  used = set(taken.values())
  free = (i for i in range(10**6) if i not in used)
  return taken | {text: next(free) for text in texts if text not in taken}


def _add(inner, special, plain) -> None:
  inner.add_tokens(
    [
      *(tokenizers.AddedToken(text, special=True, normalized=False) for text in special),
      *(tokenizers.AddedToken(text, special=False, normalized=False) for text in plain),
    ]
  )


def write(folder: pathlib.Path, inner: tokenizers.Tokenizer, **files) -> pathlib.Path:
  """A directory with tokenizer.json and these other files; a name stands for NAME.json."""
  folder.mkdir(parents=True, exist_ok=True)
  inner.save(str(folder / "tokenizer.json"))
  for name, value in {"config": {}, **files}.items():
    (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
  return folder
