"""What published models say of themselves (tests/data/published), with small tokenizers."""

import json

from tests.conftest import ROOT
from tests.tasks import small_tokenizers as small

TEMPLATES = ROOT / "tests" / "data" / "chat_templates"
PUBLISHED = ROOT / "tests" / "data" / "published"


def template_of(name: str):
  """Of a family; Hermes has two, by name."""
  read = lambda file: (TEMPLATES / f"{file}.jinja").read_text(encoding="utf-8")
  if name == "hermes":
    named = {"default": read("chatml"), "tool_use": read("hermes")}
    return [{"name": key, "template": text} for key, text in named.items()]
  return read(name)


# Directory of published files -> (tokens that are texts, with their ids; template; how texts begin)
FAMILIES = {
  "qwen2.5-0.5b-instruct": ({}, "qwen2.5", None),
  "qwen3-0.6b": ({}, "qwen3", None),
  "qwen3-30b-a3b": ({}, "hermes", None),
  "gemma-3-1b-it": ({}, "gemma3", "<bos>"),
  "gemma-2-2b-it": ({}, "gemma2", "<bos>"),
  "llama-3.2-1b-instruct": ({}, "phi", "<|begin_of_text|>"),
  "smollm2-135m-instruct": ({}, "smollm2", None),
  "deepseek-r1-distill-qwen-1.5b": (
    {"<｜User｜>": 151644, "<｜Assistant｜>": 151645, "<think>": 151648, "</think>": 151649},
    "deepseek-r1",
    "<｜begin▁of▁sentence｜>",
  ),
}
R1_SPECIAL = {"<｜end▁of▁sentence｜>": 151643, "<｜begin▁of▁sentence｜>": 151646}


def published(folder, name: str):
  """A directory with the small files of a published model and a small tokenizer."""
  texts, template, bos = FAMILIES[name]
  files = {path.stem: json.loads(path.read_text()) for path in (PUBLISHED / name).glob("*.json")}
  listed = files["tokenizer_config"].get("added_tokens_decoder", {})
  special = {row["content"]: int(i) for i, row in listed.items() if row["special"]}
  texts = texts | {row["content"]: int(i) for i, row in listed.items() if not row["special"]}
  if name.startswith("gemma"):
    inner = small.sentence_pieces(special, plain=texts)
  else:
    inner = small.byte_level(special or R1_SPECIAL, plain=texts, gpt2=name.startswith("smollm"))
  if bos:
    small.begin_with(inner, bos)
  files["tokenizer_config"] |= {"chat_template": template_of(template)}
  return small.write(folder / name, inner, **files)
