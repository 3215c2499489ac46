"""Tokenizers of published checkpoints: text there and back, chat templates, GGUF's, bad ones."""

import json

import pytest
import tokenizers

from offpolicy_rl import types
from offpolicy_rl.tasks import thoughts, tokenizer

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
      "model": "gpt2",
      "pre": "smollm",
      "tokens": tokens,
      "merges": MERGES,
      "token_type": [3, 3] + [1] * (len(tokens) - 2),
      "bos_token_id": 0,
      "eos_token_id": 1,
    } | changes

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


def test_tags_around_thoughts_are_seen_also_where_they_are_special(folder):
  file = folder / tokenizer.TOKENIZER
  content = json.loads(file.read_text())
  size = len(content["model"]["vocab"])
  tokens = ("[THINK]", "[/THINK]", "[INST]")
  content["added_tokens"] += [
    {
      "id": size + i,
      "content": text,
      "special": True,
      "normalized": False,
      "single_word": False,
      "lstrip": False,
      "rstrip": False,
    }
    for i, text in enumerate(tokens)
  ]
  file.write_text(json.dumps(content))
  words = opened(folder)
  ids = words.encode("[INST][THINK]ab 12[/THINK]a<|im_end|>b")
  assert words.decode(ids) == "[THINK]ab 12[/THINK]a"
  assert thoughts.removed(words.decode(ids)) == "a"
  assert thoughts.removed(words.decode(ids[:4])) is None


def test_every_token_has_the_text_that_it_adds(folder):
  words = opened(folder)
  assert words.token_texts(words.encode("ab ab12<|im_end|>")) == [
    "ab",
    " ab",
    "1",
    "2",
    "<|im_end|>",
  ]
  assert words.token_texts(words.encode("é漢")) == ["", "é", "", "", "漢"]  # bytes of a character
  half = words.encode("漢")[:2]
  for ids in (half * 9, [*half, *words.encode("ab")]):  # no characters at all: still in pieces
    assert len(words.token_texts(ids)) == len(ids) and "".join(words.token_texts(ids))
  assert "".join(words.token_texts([*half, *words.encode("ab")])).endswith("ab")


def test_words_that_begin_with_a_space_keep_it(tmp_path):
  """SentencePiece's way: what a token says depends on whether it is the first."""
  inner = tokenizers.Tokenizer(tokenizers.models.BPE({"▁a": 0, "▁b": 1, "c": 2, "<s>": 3}, []))
  inner.decoder = tokenizers.decoders.Metaspace()
  files = types.ModelFiles("", inner.to_str(), json.dumps({"eos_token": "<s>"}), "")
  assert tokenizer.Tokenizer(files).token_texts([0, 1, 2, 0]) == ["a", " b", "c", " a"]


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


def test_a_chat_of_several_messages_is_a_prompt(folder):
  messages = (
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
  )
  whole = "user: 1+1?\nassistant: 2\nuser: 2+2?"
  words = opened(folder, template="Say {question}", system="Be brief.")
  turn = lambda role, text: f"<|im_start|>{role}\n{text}<|im_end|>\n"
  expected = [turn("user", "1+1?"), turn("assistant", "2"), turn("user", "Say 2+2?")]
  given = words.decode_special(words.prompt(whole, messages))
  end = "<|im_start|>assistant\n"
  assert given == turn("system", "Be brief.") + "".join(expected) + end
  own = ({"role": "system", "content": "Be long."}, *messages)  # in place of the task's
  assert words.decode_special(words.prompt(whole, own)) == turn("system", "Be long.") + "".join(
    [*expected, end]
  )
  plain = opened(folder, template="Q: {question}", chat=False)
  assert plain.decode(plain.prompt(whole, messages)) == f"Q: {whole}"


@pytest.mark.parametrize(
  ("template", "message"),
  [
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ raise_exception('no system') }}", "chat_template.jinja: line 1: no system"),
    ("\n{% for %}", "chat_template.jinja: line 2: "),
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
  message = (
    f"/config.json: no such file, .* model.checkpoint names; .*hf download.*; {folder} has c"
  )
  with pytest.raises(tokenizer.TokenizerError, match=message):
    tokenizer.read_files(folder / "confg")


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
  (folder / "generation_config.json").unlink()
  with pytest.raises(tokenizer.TokenizerError, match="eos_token missing"):
    opened(folder)
  (folder / tokenizer.TOKENIZER).rename(folder / "vocab.json")
  with pytest.raises(
    tokenizer.TokenizerError, match="tokenizer.json: no such file; transformers w"
  ):
    opened(folder)
  (folder / tokenizer.TOKENIZER).write_text("{}")
  with pytest.raises(tokenizer.TokenizerError, match="tokenizer.json: "):
    opened(folder)


@pytest.mark.parametrize(("key", "value"), [("model", "llama"), ("pre", "deepseek-coder")])
def test_other_kinds_of_gguf_tokenizers_are_refused(tmp_path, key, value):
  with pytest.raises(tokenizer.TokenizerError, match=f"tokenizer.ggml.{key}: got '{value}'"):
    tokenizer.write_from_gguf(Gguf(**{key: value}), tmp_path)


def files_of(tokens=("a", "<s>", "</s>", "<pad>"), *, special=(1, 2, 3), **more):
  """A tokenizer of single letters, with its other small files."""
  inner = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(tokens)}, []))
  inner.add_special_tokens([tokens[i] for i in special])
  inner.decoder = tokenizers.decoders.Fuse()
  more.setdefault("tokenizer_config", {"eos_token": "</s>", "bos_token": "<s>"})
  change = more.pop("change", lambda inner: None)
  change(inner)
  texts = {
    key: value if isinstance(value, str) else json.dumps(value) for key, value in more.items()
  }
  return types.ModelFiles(**{"config": "", "tokenizer": inner.to_str()} | texts)


def begins_with(*tokens):
  def change(inner):
    inner.post_processor = tokenizers.processors.TemplateProcessing(
      single=[*tokens, "$A", "</s>"], special_tokens=[("<s>", 1), ("</s>", 2)]
    )

  return change


@pytest.mark.parametrize(
  "change",
  [
    lambda inner: inner.enable_truncation(3),
    lambda inner: inner.enable_padding(length=16, pad_id=3, pad_token="<pad>"),
    lambda inner: inner.enable_padding(direction="left", length=16, pad_id=3, pad_token="<pad>"),
  ],
)
def test_what_somebodys_use_left_in_a_tokenizer_is_switched_off(change):
  words = tokenizer.Tokenizer(files_of(change=change), chat=False)
  assert words.prompt("aaaaaaa") == [0] * 7


def test_the_same_text_is_always_split_in_the_same_way():
  def change(inner):
    inner.model = tokenizers.models.BPE({"a": 0, "<s>": 1, "</s>": 2, "aa": 3}, [("a", "a")])
    inner.model.dropout = 0.5

  words = tokenizer.Tokenizer(files_of(change=change))
  assert {tuple(words.encode("a" * 20)) for _ in range(20)} == {(3,) * 10}


_LLAMA = {"tokenizer_class": "LlamaTokenizer"}


@pytest.mark.parametrize(
  ("more", "ends"),
  [
    ({}, (2,)),
    ({"config": {"eos_token_id": 3}}, (2, 3)),
    (
      {"config": {"eos_token_id": [3, 2]}, "generation_config": {"eos_token_id": [1, 3]}},
      (2, 1, 3),
    ),
    ({"tokenizer_config": {}, "generation_config": {"eos_token_id": 3}}, (3,)),
    ({"tokenizer_config": {}, "special_tokens_map": {"eos_token": {"content": "<s>"}}}, (1,)),
    ({"config": {"eos_token_id": None}, "generation_config": {"eos_token_id": []}}, (2,)),
    # What the tokenizer's class says by itself, unless a file says otherwise.
    ({"tokenizer_config": _LLAMA}, (2,)),
    ({"tokenizer_config": {}, "config": _LLAMA}, (2,)),
    ({"tokenizer_config": _LLAMA, "config": {"eos_token_id": 3}}, (2, 3)),
    ({"tokenizer_config": _LLAMA | {"eos_token": None}, "config": {"eos_token_id": 3}}, (3,)),
    ({"tokenizer_config": {"eos_token": ""}, "config": {"eos_token_id": 3}}, (3,)),
    ({"tokenizer_config": {"eos_token": "</s>", "bos_token": "", "pad_token": ""}}, (2,)),
  ],
)
def test_every_end_that_a_file_names_ends_a_completion(more, ends):
  words = tokenizer.Tokenizer(files_of(**more))
  assert words.ends == ends and words.eos == ends[0]
  for end in ends:
    assert words.decode([0, end, 0]) == "a"


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (
      {"generation_config": {"eos_token_id": [2, 106]}},
      "generation_config.json: eos_token_id 106 is",
    ),
    ({"config": {"eos_token_id": -1}}, "config.json: eos_token_id -1 is no token"),
    ({"config": {"eos_token_id": "2"}}, "config.json: eos_token_id: got '2', expected a whole"),
    ({"config": {"eos_token_id": True}}, "config.json: eos_token_id: got True"),
    ({"config": {"eos_token_id": [[2]]}}, r"config.json: eos_token_id: got \[2\]"),
    ({"config": "[]"}, "config.json: got "),
    ({"config": "{"}, "config.json: no JSON"),
    ({"tokenizer_config": {}}, "eos_token missing"),
    ({"tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer"}}, "eos_token missing"),
    ({"tokenizer_config": {"eos_token": ""}}, "eos_token missing"),
    ({"tokenizer_config": {"eos_token": 2}}, "eos_token: got 2, expected a text"),
  ],
)
def test_an_end_that_is_none_is_refused(more, message):
  with pytest.raises(tokenizer.TokenizerError, match=message):
    tokenizer.Tokenizer(files_of(**more))


def test_special_tokens_and_texts_of_the_configuration_end_a_completion_too():
  words = tokenizer.Tokenizer(files_of(), stop=["<pad>", "aa", "</s>", "a<s>"])
  assert words.ends == (2, 3) and words.stop_texts == ("aa", "a<s>")
  assert [words.decode(ids) for ids in ([0, 3, 0], [0, 0], [0, 1])] == ["a", "", ""]
  assert tokenizer.describe_ends(words) == "'</s>' (2), '<pad>' (3)"


def test_a_turn_ends_as_the_template_ends_it():
  ending = lambda end: "{% for m in messages %}{{ m.content }}" + end + "{% endfor %}"
  ends = {"eos_token_id": [2, 3]}
  for template, end in ((ending("<pad>\n"), 3), (ending("</s>"), 2), (ending("\n"), 2)):
    files = files_of(generation_config=ends, chat_template=template)
    assert tokenizer.Tokenizer(files).turn_end == end
    assert tokenizer.Tokenizer(files, chat=False).turn_end == 2
  for template in ("{{ raise_exception('no') }}", "{{ messages[0].content }}<pad>"):
    files = files_of(generation_config=ends, chat_template=template)
    assert tokenizer.Tokenizer(files).turn_end == 2


def test_turns_that_end_with_text_are_told(folder):
  """As ChatML does where nobody made a token of <|im_end|>."""
  ending = "{% for m in messages %}{{ m.content }}[/END] \n{% endfor %}"
  (folder / tokenizer.TEMPLATE).write_text(ending)
  note = (
    "the chat template ends a turn with '[/END]', but no file says that it ends a completion: see "
    "sampler.stop"
  )
  assert opened(folder).turn_notes() == [note] == opened(folder).check()[1:]
  (folder / tokenizer.TEMPLATE).write_text(ending.replace("[/END]", "!<|im_start|>\n"))
  assert opened(folder).turn_notes() == [note.replace("[/END]", "<|im_start|>")]
  (folder / tokenizer.TEMPLATE).write_text(ending)
  assert opened(folder, chat=False).turn_notes() == []
  assert opened(folder, stop=["[/END]"]).turn_notes() == []
  for template in (ending.replace("[/END]", ""), "{{ messages[0].content }}[/END]"):
    (folder / tokenizer.TEMPLATE).write_text(template)
    assert opened(folder).turn_notes() == []


IN_PARTS = "{% for p in messages[-1].content if p.type == 'text' %}{{ p.text }}{% endfor %}Answer:"


@pytest.mark.parametrize("template", [IN_PARTS, "Hello!", "{{ messages[-1]['text'] }}"])
def test_a_template_that_leaves_out_the_question_is_refused(folder, template):
  (folder / tokenizer.TEMPLATE).write_text(template)
  words = opened(folder)
  for call in (words.check, lambda: words.prompt("What is 2 + 2?")):
    with pytest.raises(tokenizer.TokenizerError, match=r"leaves out the question '1 \+ 1\?' and"):
      call()


def test_a_template_may_change_what_it_is_given(folder):
  (folder / tokenizer.TEMPLATE).write_text("{{ messages[-1].content | trim | replace('a', 'b') }}")
  words = opened(folder)
  assert words.check() and words.decode(words.prompt(" aa\n")) == "bb"


def test_a_template_that_needs_a_system_message_says_so():
  asks = "{% set said = messages[-1].content %}aa{{ said if said != 'a' }}"
  template = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('rules!') }}{% endif %}" + asks
  )
  words = tokenizer.Tokenizer(files_of(chat_template=template))
  assert words.check()[1:] == ["the chat template needs a system message: set task.system_prompt"]
  assert tokenizer.Tokenizer(files_of(chat_template=template), system="a").prompt("a") == [0, 0]
  with pytest.raises(tokenizer.TokenizerError, match="line 1: rules!"):
    tokenizer.Tokenizer(files_of(chat_template=template + "{{ 1 / 0 }}")).check()


@pytest.mark.parametrize(
  ("change", "text", "ids"),
  [
    (begins_with("<s>"), "aa", [1, 0, 0]),
    (begins_with("<s>"), "", [1]),
    (begins_with("<s>"), "<s>aa", [1, 0, 0]),  # the task's prompt has it already
    (begins_with("<s>", "</s>"), "a", [1, 2, 0]),
    (begins_with(), "a", [0]),  # what would come at the end does not
    (lambda inner: None, "a", [0]),
  ],
)
def test_a_prompt_without_chat_begins_as_the_tokenizer_begins_texts(change, text, ids):
  files = files_of(change=change, chat_template="{{ bos_token }}{{ messages[0].content }}")
  assert tokenizer.Tokenizer(files, chat=False).prompt(text) == ids
  if text == "aa":
    assert tokenizer.Tokenizer(files).prompt(text) == [1, 0, 0]  # the template says it, once


def test_tokens_that_only_the_small_files_name_are_tokens():
  listed = {"4": {"content": "<new>", "special": True}, "5": {"content": "b", "special": False}}
  settings = {"eos_token": "</s>", "added_tokens_decoder": listed}
  words = tokenizer.Tokenizer(files_of(tokenizer_config=settings))
  ids = words.encode("a<new>b")
  assert ids == [0, 4, 5] and words.decode(ids) == "ab" and words.size == 6
  legacy = files_of(
    added_tokens={"b": 4, "<new>": 5}, special_tokens_map={"additional_special_tokens": ["<new>"]}
  )
  ids = tokenizer.Tokenizer(legacy).encode("a<new>b")
  assert ids == [0, 5, 4] and tokenizer.Tokenizer(legacy).decode(ids) == "ab"
  listed["7"] = listed.pop("5")
  with pytest.raises(tokenizer.TokenizerError, match="'b' has id 7, but 5 by tokenizer.json"):
    tokenizer.Tokenizer(files_of(tokenizer_config=settings))


def test_a_token_without_an_embedding_can_not_be_used():
  words = tokenizer.Tokenizer(files_of(tokenizer_config={"eos_token": "<s>"}), vocab_size=3)
  assert words.encode("a<s></s>") == [0, 1, 2]
  with pytest.raises(tokenizer.TokenizerError, match="token '<pad>' in 'a<pad>' has id 3"):
    words.encode("a<pad>")
  with pytest.raises(tokenizer.TokenizerError, match="eos_token '</s>': expected an id below"):
    tokenizer.Tokenizer(files_of(), vocab_size=2)


def test_the_fingerprint_tells_everything_apart_that_a_sampler_goes_by():
  changes = [
    {},
    {"generation_config": {"eos_token_id": 3}},
    {"chat_template": "x"},
    {"tokenizer_config": {"eos_token": "<s>"}},
    {"special_tokens_map": {"pad_token": "<pad>"}},
    {"added_tokens": {"b": 4}},
  ]
  prints = [tokenizer.Tokenizer(files_of(**change)).fingerprint for change in changes]
  prints.append(tokenizer.Tokenizer(files_of(), stop=["<pad>"]).fingerprint)
  assert len(set(prints)) == len(prints)
