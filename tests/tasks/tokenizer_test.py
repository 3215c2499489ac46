"""Tokenizers of published checkpoints: text there and back, chat templates, GGUF's, bad ones."""

import json

import pytest
import tokenizers

from offpolicy_rl import types
from offpolicy_rl.tasks import tokenizer

CHAT = (
  "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
  "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Bytes as byte-level BPE writes them, and a few merges.
BYTES = [*tokenizers.pre_tokenizers.ByteLevel.alphabet()]
MERGES = ["1 2", "a b", "Ġ ab"]


class Gguf:
  """The part of an opened GGUF file that is asked."""

  def __init__(self, **changes):
    tokens = ["<|im_start|>", "<|im_end|>", *sorted(BYTES), "12", "ab", "Ġab"]
    self._values = {
      "model": "gpt2", "pre": "smollm", "tokens": tokens, "merges": MERGES,
      "token_type": [3, 3] + [1] * (len(tokens) - 2), "bos_token_id": 0, "eos_token_id": 1,
    } | changes  # fmt: skip

  def get(self, key, default=None):
    if key == "tokenizer.chat_template":
      return CHAT
    return self._values.get(key.removeprefix("tokenizer.ggml."), default)


def opened(folder, **options):
  (folder / tokenizer.CONFIG).touch()  # the model's affair
  return tokenizer.Tokenizer(tokenizer.read_files(folder), **options)


@pytest.fixture
def folder(tmp_path):
  tokenizer.write_from_gguf(Gguf(), tmp_path)
  return tmp_path


def test_text_comes_back_whatever_is_in_it(folder):
  words = opened(folder)
  for text in ("ab ab", "naïve 漢字 \n\t", "12 a1", ""):
    assert words.decode(words.encode(text)) == text


def test_every_token_has_the_text_that_it_adds(folder):
  words = opened(folder)
  assert words.texts(words.encode("ab ab12<|im_end|>")) == ["ab", " ab", "1", "2", "<|im_end|>"]
  assert words.texts(words.encode("é漢")) == ["", "é", "", "", "漢"]  # bytes of a character
  half = words.encode("漢")[:2]
  for ids in (half * 9, [*half, *words.encode("ab")]):  # no characters at all: still in pieces
    assert len(words.texts(ids)) == len(ids) and "".join(words.texts(ids))
  assert "".join(words.texts([*half, *words.encode("ab")])).endswith("ab")


def test_words_that_begin_with_a_space_keep_it(tmp_path):
  """SentencePiece's way: what a token says depends on whether it is the first."""
  inner = tokenizers.Tokenizer(tokenizers.models.BPE({"▁a": 0, "▁b": 1, "c": 2, "<s>": 3}, []))
  inner.decoder = tokenizers.decoders.Metaspace()
  files = types.ModelFiles("", inner.to_str(), json.dumps({"eos_token": "<s>"}), "")
  assert tokenizer.Tokenizer(files).texts([0, 1, 2, 0]) == ["a", " b", "c", " a"]


def test_digits_stand_alone_and_letters_merge(folder):
  words = opened(folder)
  pieces = [words._inner.id_to_token(i) for i in words.encode("ab ab12")]
  assert pieces == ["ab", "Ġab", "1", "2"]


def test_qwens_split_keeps_digits_together_with_nothing_else(tmp_path):
  tokenizer.write_from_gguf(Gguf(pre="qwen2"), tmp_path)
  words = opened(tmp_path)
  assert [words._inner.id_to_token(i) for i in words.encode("ab12")] == ["ab", "1", "2"]


def test_special_tokens_are_one_token_and_end_the_text(folder):
  words = opened(folder)
  ids = words.encode("<|im_start|>ab<|im_end|>ab")
  assert len(ids) == 4 and words.eos == ids[2] == 1
  assert words.decode(ids) == "ab"


def test_a_chat_is_written_as_the_template_says(folder):
  words = opened(folder)
  told = words.chat([{"role": "user", "content": "1+1?"}])
  assert told == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ raise_exception('no system') }}", "chat template: no system"),
    ("{% for %}", "chat template"),
    ("", "no chat template"),
  ],
)
def test_a_template_that_fails_or_reaches_out_is_refused(folder, template, message):
  (folder / tokenizer.TEMPLATE).write_text(template)
  with pytest.raises(tokenizer.TokenizerError, match=message):
    opened(folder).chat([{"role": "user", "content": "x"}])


def test_a_question_becomes_a_prompt_as_the_task_says(folder):
  plain = opened(folder, template="Q: {question}\nA:", chat=False)
  assert plain.decode(plain.prompt("ab?")) == "Q: ab?\nA:"
  words = opened(folder, template="{question} {x}")
  assert words.prompt("ab?") == words.encode(words.chat([{"role": "user", "content": "ab? {x}"}]))


def test_a_missing_small_file_is_named(folder):
  (folder / tokenizer.CONFIG).write_text("{}")
  assert tokenizer.read_files(folder).chat_template == CHAT
  (folder / tokenizer.SETTINGS).unlink()
  with pytest.raises(tokenizer.TokenizerError, match="tokenizer_config.json: no such file"):
    tokenizer.read_files(folder)


def test_the_fingerprint_tells_tokenizers_apart(folder, tmp_path_factory):
  other = tmp_path_factory.mktemp("other")
  tokenizer.write_from_gguf(Gguf(merges=MERGES[:2]), other)
  prints = [opened(f).fingerprint for f in (folder, folder, other)]
  assert prints[0] == prints[1] != prints[2]


def test_bad_files_are_refused_by_name(folder):
  settings = folder / tokenizer.SETTINGS
  settings.write_text(json.dumps({"eos_token": {"content": "<nowhere>"}}))
  with pytest.raises(tokenizer.TokenizerError, match="eos_token '<nowhere>' is no token"):
    opened(folder)
  settings.write_text("{}")
  with pytest.raises(tokenizer.TokenizerError, match="eos_token None"):
    opened(folder)
  (folder / tokenizer.TOKENIZER).write_text("{}")
  with pytest.raises(tokenizer.TokenizerError, match="tokenizer.json: "):
    opened(folder)


@pytest.mark.parametrize(("key", "value"), [("model", "llama"), ("pre", "deepseek-coder")])
def test_other_kinds_of_gguf_tokenizers_are_refused(tmp_path, key, value):
  with pytest.raises(tokenizer.TokenizerError, match=f"tokenizer.ggml.{key}: got '{value}'"):
    tokenizer.write_from_gguf(Gguf(**{key: value}), tmp_path)
