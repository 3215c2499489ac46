"""Small files that somebody else wrote: whatever is in them, a TokenizerError or a tokenizer."""

import json

import pytest

from offpolicy_rl import types
from offpolicy_rl.tasks import special_tokens, tokenizer
from tests.fuzzing import change_json, randoms
from tests.tasks import small_tokenizers as small

GOOD = {
  "config": {"eos_token_id": 2, "vocab_size": 267},
  "tokenizer_config": {
    "bos_token": "<s>",
    "eos_token": {"content": "</s>"},
    "unk_token": "<unk>",
    "sep_token": None,
    "pad_token": "<pad>",
    "added_tokens_decoder": {"0": {"content": "<unk>", "special": True}},
    "additional_special_tokens": ["<pad>"],
    "extra_special_tokens": {"image_token": "<pad>"},
    "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
    "split_special_tokens": False,
    "tokenizer_class": "LlamaTokenizer",
    "image_token": "<pad>",
  },
  "generation_config": {"eos_token_id": [2, 3], "temperature": 0.6, "suppress_tokens": [1]},
  "special_tokens_map": {"bos_token": "<s>", "additional_special_tokens": ["<pad>"]},
  "added_tokens": {"<new>": 267},
}
INNER = small.begin_with(small.byte_level({"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}), "<s>")


def use(files: types.ModelFiles) -> bool:
  """Opens and uses a tokenizer; True unless it was refused."""
  try:
    for chat in (True, False):
      words = tokenizer.Tokenizer(files, chat=chat, vocab_size=300, stop=["abc", "<s>"])
      words.check()
      tokenizer.notes(files)
      words.prompt("1 + 1?")
      assert words.decode([*words.encode("ab"), words.turn_end, *words.encode("c")]) == "ab"
    return True
  except tokenizer.TokenizerError as error:
    assert str(error)
    return False


def test_the_good_one_is_good():
  assert use(
    types.ModelFiles(tokenizer=INNER.to_str(), **{k: json.dumps(v) for k, v in GOOD.items()})
  )


@pytest.mark.parametrize("name", GOOD)
def test_other_values_are_read_or_refused(name):
  taken = 0
  for rng in randoms(150):
    files = GOOD | {name: change_json(rng, GOOD[name])}
    if rng.random() < 0.5:
      files["tokenizer_config"] = {"eos_token": "</s>", "chat_template": "x"}  # then others count
    texts = {key: json.dumps(value) for key, value in files.items()}
    taken += use(types.ModelFiles(tokenizer=INNER.to_str(), **texts))
  assert taken < 150


def test_parts_of_files_are_read_or_refused():
  texts = {key: json.dumps(value) for key, value in GOOD.items()} | {"tokenizer": INNER.to_str()}
  for rng in randoms(60):
    name = rng.choice(("config", "tokenizer", "tokenizer_config", "generation_config"))
    at = rng.randrange(len(texts[name]))
    cut = texts[name][:at] + rng.choice(("", "\x00", "}", "[" * 100_000))
    taken = use(types.ModelFiles(**texts | {name: cut}))
    assert not taken or name == "tokenizer" or isinstance(json.loads(cut), dict)


TEMPLATES = (
  "{{ 1 / 0 }}",
  "{{ 'a' + 1 }}",
  "{{ messages.x.y }}",
  "{{ none() }}",
  "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  "{% include 'x' %}",
  "{% extends 'y' %}",
  "{{ ''.__class__() }}",
  "{{ namespace(__x=1) }}",
  "{% set ns = namespace() %}{% set ns.__y = 1 %}",
  "{{ messages | unknown }}",
  "{{ range(10**9) | list }}",
  "{{ '%d' | format('x') }}",
  "{{ x ",
  "{% for a in b %}",
  "{{ raise_exception(messages) }}",
  "{{ strftime_now(3) }}",
  "{% generation %}",
  "{{ messages | tojson(indent='x', sort_keys=3, separators=1) }}",
  "{{ dict(1) }}",
  "{{ 9 ** 9 ** 5 ** messages | length ** 'x' }}",
  "{{ lipsum.__globals__.x }}",
  "(" * 300 + "{{" + "(" * 300 + "1" + ")" * 300 + "}}",
  "{% if x %}" * 200 + "{% endif %}" * 200,
  "{% for x in [1] %}" * 30 + "{% endfor %}" * 30,
  "{{ messages.append(1) }}",
  "{{ self.x() }}",
)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda text: text[:30])
def test_a_template_that_fails_is_refused_by_file(template):
  files = types.ModelFiles(
    tokenizer=INNER.to_str(),
    config="",
    tokenizer_config='{"eos_token": "</s>"}',
    chat_template=template,
  )
  words = tokenizer.Tokenizer(files)
  with pytest.raises(tokenizer.TokenizerError, match="chat_template.jinja: "):
    words.check()


class Metadata:
  """An opened GGUF file whose metadata are not what they should be."""

  def __init__(self, values: dict):
    self._values = values

  def get(self, key: str, default=None):
    """As gguf_files.GgufFile."""
    found = self._values.get(key, default)
    if found is None:
      raise special_tokens.TokenizerError(f"{key} missing")
    return found


def test_other_metadata_are_read_or_refused(tmp_path):
  tokens = [*small.BYTES, "<s>", "</s>", "<think>", "th"]
  good = {
    "model": "gpt2",
    "pre": "qwen2",
    "tokens": tokens,
    "merges": ["t h"],
    "token_type": [1] * 256 + [3, 3, 4, 1],
    "bos_token_id": 256,
    "eos_token_id": 257,
    "eot_token_id": 257,
    "unknown_token_id": 0,
    "add_bos_token": True,
  }
  good = {f"tokenizer.ggml.{key}": value for key, value in good.items()}
  good |= {"tokenizer.chat_template": "{{ messages }}", "tokenizer.chat_templates": ["x"]}
  for number, rng in enumerate(randoms(300)):
    folder, key = tmp_path / str(number), rng.choice(list(good))
    metadata = good | ({key: change_json(rng, good[key])} if number else {})
    if "\ud800" in json.dumps(metadata, ensure_ascii=False):  # no text of a GGUF file has it
      continue
    try:
      tokenizer.write_from_gguf(Metadata(metadata), folder)
    except tokenizer.TokenizerError as error:
      assert number and str(error)
      continue
    (folder / "config.json").write_text("{}")
    use(tokenizer.read_files(folder))
