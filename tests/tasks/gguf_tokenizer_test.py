"""The same tokenizer from a GGUF file and from Hugging Face's files: equal ids, equal texts."""

import json

import gguf
import pytest

from offpolicy_rl.model import gguf_files
from offpolicy_rl.tasks import tokenizer
from tests.tasks import small_tokenizers as small

SPECIAL = {"<|endoftext|>": 266, "<|im_start|>": 267, "<|im_end|>": 268}
PLAIN = {"<think>": 269, "</think>": 270, "<tool_call>": 271, "<|fim_prefix|>": 272}
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEXTS = (
  "How much is 17 + 25? 12 1212",
  "naïve 漢字 🙂 👩\u200d👩\u200d👧 e\u0301 \u1e69 \u0073\u0323\u0307 \ufb01 \uac00 \u1100\u1161",
  " a\r\n\n  b\t\tc   \n \u00a0 \u3000x ",
  "<think>2+2 is 4</think>#### 4<|im_end|>",
  "<|im_start|>user\n<tool_call>{}<|fim_prefix|> <| im_end|> <think",
  "it's THE the'LL theTHE _the_ ab ab",
  "",
)


def write(path, inner, *, kinds=None, **more):
  """A GGUF file with this tokenizer and no weights."""
  by_id = {i: text for text, i in inner.get_vocab().items()}
  tokens = [by_id.get(i, f"[PAD{i}]") for i in range(max(by_id) + 1)]
  kind = {text: gguf.TokenType.CONTROL for text in (*SPECIAL, "<|fim_prefix|>")}
  kind |= {text: gguf.TokenType.USER_DEFINED for text in PLAIN if text not in kind}
  kind |= {f"[PAD{i}]": gguf.TokenType.UNUSED for i in range(300)} | (kinds or {})
  writer = gguf.GGUFWriter(path, "qwen2")
  merges = json.loads(inner.to_str())["model"]["merges"]
  settings = {
    "tokenizer_model": "gpt2",
    "tokenizer_pre": "qwen2",
    "token_list": tokens,
    "token_types": [kind.get(text, gguf.TokenType.NORMAL) for text in tokens],
    "token_merges": [" ".join(pair) for pair in merges],
    "eos_token_id": SPECIAL["<|im_end|>"],
    "bos_token_id": SPECIAL["<|endoftext|>"],
    "pad_token_id": SPECIAL["<|endoftext|>"],
    "chat_template": CHATML,
  } | more
  for key, value in settings.items():
    if value is not None:
      getattr(writer, f"add_{key}")(value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()
  return path


def imported(folder, file):
  """The tokenizer as the import takes it."""
  tokenizer.write_from_gguf(gguf_files.GgufFile(file), folder)
  (folder / "config.json").write_text("{}")
  return tokenizer.read_files(folder)


@pytest.fixture
def inner():
  return small.byte_level(SPECIAL, plain=PLAIN | {"unused": 280})


def test_both_ways_give_the_same_ids_and_texts(tmp_path, inner):
  file = write(tmp_path / "f.gguf", inner, chat_template=CHATML + "{{ bos_token }}")
  files = imported(tmp_path / "gguf", file)
  settings = {
    "eos_token": "<|im_end|>",
    "bos_token": None,
    "pad_token": "<|endoftext|>",
    "chat_template": CHATML + "{{ bos_token }}",
  }
  generation = {"eos_token_id": [268, 266], "temperature": 0.7}
  other = small.write(
    tmp_path / "hf", inner, tokenizer_config=settings, generation_config=generation
  )
  ours, theirs = (tokenizer.Tokenizer(f) for f in (files, tokenizer.read_files(other)))
  for text in TEXTS:
    ids = ours.encode(text)
    assert ids == theirs.encode(text), text
    assert ours.decode(ids) == theirs.decode(ids)
    assert (ours.decode_all(ids), ours.decode_special(ids)) == (
      theirs.decode_all(ids),
      theirs.decode_special(ids),
    )
    assert ours.prompt(text) == theirs.prompt(text)
  assert ours.decode(ours.encode(TEXTS[3])) == "<think>2+2 is 4</think>#### 4"
  assert ours.encode("e\u0301") == ours.encode("\u00e9")
  assert ours.ends == theirs.ends == (268, 266)
  assert ours.decode_special([275]) == "", "a place without a token says nothing"
  plain = tokenizer.Tokenizer(files, chat=False)
  assert plain.prompt("the") == plain.encode("the")


def test_ends_beginnings_and_templates_of_the_metadata_are_kept(tmp_path, inner):
  templates = [
    {"name": "default", "template": CHATML},
    {"name": "tool_use", "template": "{{ tools[0] }}!"},
  ]
  file = write(
    tmp_path / "f.gguf",
    inner,
    eot_token_id=SPECIAL["<|im_start|>"],
    add_bos_token=True,
    unk_token_id=0,
    chat_template=templates,
  )
  files = imported(tmp_path / "gguf", file)
  words = tokenizer.Tokenizer(files, chat=False)
  assert words.ends == (268, 267, 266)
  assert words.prompt("the") == [266, *words.encode("the")]
  tools = tokenizer.Tokenizer(files, arguments={"tools": ["a"]})
  assert tools.chat([{"role": "user", "content": "x"}]) == "a!"
  assert tokenizer.Tokenizer(files).prompt("x")[0] == SPECIAL["<|im_start|>"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"tokenizer_model": None}, "tokenizer.ggml.model"),
    ({"tokenizer_pre": None}, "tokenizer.ggml.pre"),
    ({"tokenizer_pre": "deepseek-r1-qwen"}, "tokenizer.ggml.pre: got 'deepseek-r1-qwen'"),
    ({"token_merges": None}, "tokenizer.ggml.merges"),
    ({"token_merges": ["t h", "nothing"]}, "tokenizer.ggml.merges: "),
    ({"token_merges": ["x1 x2"]}, "tokenizer.ggml.merges: "),
    ({"token_types": None}, "tokenizer.ggml.token_type"),
    ({"token_types": [1, 1, 3]}, "tokenizer.ggml.token_type: got 3, expected 281"),
    ({"token_list": [1, 2, 3]}, "tokenizer.ggml.tokens: got 1, expected a text"),
    ({"eos_token_id": 281}, "tokenizer.ggml.eos_token_id: got 281, expected one of 281"),
  ],
)
def test_bad_metadata_are_refused_by_their_key(tmp_path, inner, changes, message):
  with pytest.raises((tokenizer.TokenizerError, gguf_files.GgufError), match=message):
    imported(tmp_path / "gguf", write(tmp_path / "f.gguf", inner, **changes))


def test_a_file_that_names_no_end_is_refused(tmp_path, inner):
  file = write(tmp_path / "f.gguf", inner, eos_token_id=None, tokenizer_pre="smollm")
  files = imported(tmp_path / "gguf", file)
  with pytest.raises(tokenizer.TokenizerError, match="eos_token missing"):
    tokenizer.Tokenizer(files)
