"""What transformers makes of the same files, byte for byte: chats, ids, texts, special tokens."""

import datetime
import functools
import json
import subprocess

import pytest

from benchmarks import parity
from offpolicy_rl.tasks import tokenizer
from tests.conftest import ROOT
from tests.tasks import small_tokenizers as small
from tests.tasks.published import FAMILIES, published, template_of

# Of no published directory: template, and what is said about a tokenizer of Llama 2's kind.
OWN = {
  "chatml": ("chatml", None),
  "llama3": ("llama3", None),
  "odd": ("odd", None),
  "metaspace": ("mistral", {}),
  "llama2": ("mistral", {"tokenizer_class": "LlamaTokenizer"}),
  "llama2-legacy": ("chatml", {"tokenizer_class": "LlamaTokenizerFast", "legacy": True}),
  "llama2-plain": ("chatml", {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}),
}

QUESTIONS = (
  "How much is 17 + 25?",
  'Is 3 < 5 & Tom\'s "x" > y? \\n {{ bos_token }} {% if %}',
  "  two spaces before, and after  \n\n",
  "naïve 漢字 🙂 e\u0301 \u200d\t\x7f",
  "",
  "<|im_end|> </think> <s> <unk> [INST] <start_of_turn>",
  "12 ab  ab\r\n\n\nthe thethe 1212 \u00a0x",
  "a <new>  b <s> ab<  c[PAD] E\u0301a Éa</s>",
)


def message(role: str, content) -> dict:
  return {"role": role, "content": content}


CONVERSATIONS = [
  *([message("user", text)] for text in QUESTIONS),
  *([message("system", "Be brief.\n"), message("user", text)] for text in QUESTIONS),
  [
    message("user", "1+1?"),
    message("assistant", "<think>\nhm\n</think>\n\n2"),
    message("user", "And 2+2? "),
    message("assistant", " 4\n"),
  ],
  [
    message("system", "A"),
    message("user", "1+1?"),
    message("assistant", "2"),
    message("user", "And 2+2?"),
  ],
  [message("user", [{"type": "text", "text": " parts "}, {"type": "image"}])],
  [message("assistant", "I begin."), message("user", "No.")],
]
TOOL = {
  "type": "function",
  "function": {
    "name": "add",
    "description": 'Adds & "subtracts" <é>',
    "parameters": {
      "type": "object",
      "properties": {
        "xs": {"type": "array", "items": {"type": "integer"}},
        "b": {"type": "string"},
      },
    },
  },
}
ARGUMENTS = [
  {},
  {"enable_thinking": False},
  {"enable_thinking": True},
  {"date_string": "3 Mar 2003"},
  {"tools": [TOOL]},
  {"documents": [{"title": "t", "text": "x"}], "bos_token": "<other>"},
]
CHATS = [
  *((chat, {}, opened) for chat in CONVERSATIONS for opened in (True, False)),
  *((chat, arguments, True) for chat in CONVERSATIONS[6:] for arguments in ARGUMENTS[1:]),
]


def made(folder, name: str):
  """The same of no published model."""
  special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "<image>": 4}
  template, about = OWN[name]
  if about is None:
    inner = small.byte_level(special)
  else:
    inner = small.sentence_pieces(special, prefix=True)
  small.begin_with(inner, "<s>")
  settings = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "mask_token": None,
    "unk_token": {"__type": "AddedToken", "content": "<unk>"},
    "image_token": "<image>",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "chat_template": "not this one",
  } | (about or {})
  inner.enable_truncation(5)
  inner.enable_padding(length=9, pad_id=3, pad_token="<pad>")
  to = small.write(folder / name, inner, tokenizer_config=settings)
  (to / tokenizer.TEMPLATE).write_text(template_of(template), encoding="utf-8")
  return to


def flags(content: str, **more) -> dict:
  return {
    "content": content,
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
    "normalized": False,
    "special": False,
  } | more


# The ways in which small files name tokens that tokenizer.json lacks or knows otherwise.
_PLAIN = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
WAYS = {
  "listed": {
    "tokenizer_config": _PLAIN
    | {
      "added_tokens_decoder": {
        "267": flags("<new>", lstrip=True, special=True),
        "268": flags("ab<", rstrip=True),
        "269": flags("thethe", single_word=True),
        "270": flags("Éa", normalized=True),
      }
    },
    "special_tokens_map": {"unk_token": "<unk>"},
  },
  "changed": {
    "tokenizer_config": _PLAIN
    | {
      "added_tokens_decoder": {
        "0": flags("<unk>"),
        "1": flags("<s>", special=True, rstrip=True),
        "2": flags("</s>"),
      }
    }
  },
  "legacy": {
    "tokenizer_config": {"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"},
    "special_tokens_map": {
      "bos_token": {
        "content": "<s>",
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
        "single_word": False,
      },
      "extra_special_tokens": ["<new>"],
      "eos_token": "<pad>",
    },
    "added_tokens": {"thethe": 268, "<new>": 267},
  },
  "unnamed": {
    "tokenizer_config": _PLAIN
    | {"pad_token": "[PAD]", "additional_special_tokens": ["12"], "sep_token": "the"}
  },
  "specific": {
    "tokenizer_config": _PLAIN | {"model_specific_special_tokens": {"image_token": "<image>"}}
  },
  "empty": {"tokenizer_config": _PLAIN | {"pad_token": "", "sep_token": ""}},
  "split": {"tokenizer_config": _PLAIN | {"split_special_tokens": True}},
  "dictionary": {
    "tokenizer_config": _PLAIN | {"extra_special_tokens": {"image_token": "<image>", "x": "<new>"}}
  },
}


def other_way(folder, name: str):
  """A directory whose small files name tokens in another way."""
  special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}
  inner = small.begin_with(small.byte_level(special), "<s>")
  to = small.write(folder / name, inner, **WAYS[name])
  (to / tokenizer.TEMPLATE).write_text(template_of("chatml"), encoding="utf-8")
  more = to / "additional_chat_templates"
  more.mkdir()
  (more / "tool_use.jinja").write_text("{{ tools | tojson }}", encoding="utf-8")
  return to


@pytest.fixture(scope="module")
def told(tmp_path_factory):
  """(directory, what transformers says about it) by name, and the day on which it did."""
  if not parity.PYTHON.exists():
    pytest.skip(f"no {parity.PYTHON}: `make test` installs transformers there")
  folder = tmp_path_factory.mktemp("tokenizers")
  folders = {name: published(folder, name) for name in FAMILIES}
  folders |= {name: made(folder, name) for name in OWN}
  folders |= {name: other_way(folder, name) for name in WAYS}
  questions = [
    {"folder": str(folder), "chats": CHATS, "texts": QUESTIONS} for folder in folders.values()
  ]
  (folder / "questions.json").write_text(json.dumps(questions))
  script = ROOT / "tests" / "reference" / "transformers_tokenizers.py"
  subprocess.run(
    [parity.PYTHON, script, folder / "questions.json", folder / "answers.json"],
    check=True,
    timeout=300,
  )
  answers = json.loads((folder / "answers.json").read_text())
  day = datetime.date.fromisoformat(answers["day"])
  return {
    name: (functools.partial(tokenizer.Tokenizer, tokenizer.read_files(path), day=day), answer)
    for (name, path), answer in zip(folders.items(), answers["answers"], strict=True)
  }


def refuses(words, chat, begun) -> bool:
  """And says where in the template."""
  with pytest.raises(tokenizer.TokenizerError, match="line [1-9]"):
    words.chat(chat, opened=begun)
  return True


@pytest.mark.parametrize("name", [*FAMILIES, *OWN, *WAYS])
def test_chats_read_as_transformers_writes_them(told, name):
  opened, answer = told[name]
  kinds = {json.dumps(arguments): opened(arguments=arguments) for arguments in ARGUMENTS}
  rendered = 0
  for row, text, ids in zip(CHATS, answer["chats"], answer["chat_ids"], strict=True):
    chat, arguments, begun = row
    words = kinds[json.dumps(arguments)]
    if isinstance(text, dict):
      assert refuses(words, chat, begun), text
      continue
    said = words.chat(chat, opened=begun)
    assert said == text, row
    assert words.encode(said) == ids
    rendered += 1
  assert rendered > len(CHATS) / 4, "too little of the table is about texts"


@pytest.mark.parametrize("name", [*FAMILIES, *OWN, *WAYS])
def test_prompts_are_chats_of_one_question(told, name):
  opened, answer = told[name]
  for system, arguments in (("", {}), ("Be brief.\n", {"enable_thinking": False})):
    words = opened(system=system, arguments=arguments)
    for (chat, given, begun), ids in zip(CHATS, answer["chat_ids"], strict=True):
      one = [m["role"] for m in chat] == ["system"] * bool(system) + ["user"]
      if one and begun and given == arguments and chat[-1]["content"] in QUESTIONS:
        assert isinstance(ids, dict) or words.prompt(chat[-1]["content"]) == ids


@pytest.mark.parametrize("name", [*FAMILIES, *OWN, *WAYS])
def test_texts_have_the_ids_that_transformers_gives_them(told, name):
  opened, answer = told[name]
  words = opened(chat=False)
  for text, said in zip(QUESTIONS, answer["texts"], strict=True):
    assert words.prompt(text) == said["ids"], text
    assert words.decode_all(said["ids"]) == said["plain"]
    assert words.decode_special(said["ids"]) == said["spelled"]


@pytest.mark.parametrize("name", [*FAMILIES, *WAYS])
def test_special_tokens_of_published_models_are_those_of_transformers(told, name):
  opened, answer = told[name]
  names = (*answer["named"], "bos_token", "unk_token", "pad_token", "mask_token", "cls_token")
  told_of = ", ".join(f"{name} | default('')" for name in names)
  template = f"{{{{ [{told_of}] | tojson }}}}"
  [files] = opened.args
  words = tokenizer.Tokenizer(files._replace(chat_template=template))
  assert json.loads(words.chat([])) == [answer["named"].get(name, "") for name in names]
  assert words.eos == answer["eos_id"]
