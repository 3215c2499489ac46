"""Ends, beginnings and special tokens of published models, by their own small files."""

import json

import pytest

from offpolicy_rl.tasks import special_tokens, tokenizer
from tests.tasks.published import FAMILIES, published

QWEN = (["<|im_end|>", "<|endoftext|>"], "<|im_end|>", None)
KNOWN = {  # what ends a completion; with what the model ends its turn; how texts begin
  "qwen2.5-0.5b-instruct": QWEN,
  "qwen3-0.6b": QWEN,
  "qwen3-30b-a3b": QWEN,
  "gemma-3-1b-it": (["<eos>", "<end_of_turn>"], "<end_of_turn>", "<bos>"),
  "gemma-2-2b-it": (["<eos>", "<end_of_turn>"], "<end_of_turn>", "<bos>"),
  "smollm2-135m-instruct": (["<|im_end|>"], "<|im_end|>", None),
  "llama-3.2-1b-instruct": (
    ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"],
    "<|eot_id|>",
    "<|begin_of_text|>",
  ),
  "deepseek-r1-distill-qwen-1.5b": (
    ["<｜end▁of▁sentence｜>"],
    "<｜end▁of▁sentence｜>",
    "<｜begin▁of▁sentence｜>",
  ),
}
SAMPLING = {  # what generation_config.json would have differently
  "qwen2.5-0.5b-instruct": {
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "repetition_penalty": 1.1,
  },
  "gemma-3-1b-it": {"top_k": 64, "top_p": 0.95},
  "gemma-2-2b-it": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_published_model_says_is_followed(tmp_path, name):
  files = tokenizer.read_files(published(tmp_path, name))
  if name.startswith("llama"):  # its turns end as the family's template ends them
    files = files._replace(
      tokenizer_config=files.tokenizer_config.replace("<|im_end|>", "<|eot_id|>")
    )
  ends, turn_end, bos = KNOWN[name]
  words = tokenizer.Tokenizer(files)
  assert [words.decode_special([i]) for i in words.ends] == ends
  assert words.decode_special([words.turn_end]) == turn_end
  plain = tokenizer.Tokenizer(files, chat=False)
  assert plain.decode_special(plain.prompt("1 + 1?")) == f"{bos or ''}1 + 1?"
  begins = words.decode_special(words.prompt("1 + 1?"))
  assert bos is None or begins.count(bos) <= 1
  assert "1 + 1?" in begins
  assert words.decode(words.encode("<think>x</think>5")) == "<think>x</think>5"
  if name in SAMPLING:
    assert special_tokens.not_followed(files) == SAMPLING[name]


def test_tokens_without_a_row_of_gemma_3_hinder_nobody(tmp_path):
  """Its tokenizer has one token more than its embedding has rows."""
  files = tokenizer.read_files(published(tmp_path, "gemma-3-1b-it"))
  words = tokenizer.Tokenizer(files, vocab_size=262_144)
  assert words.size == 262_145
  assert words.check()[1] == (
    "tokens without an embedding, which no prompt may contain: 1, '<image_soft_token>'"
  )
  with pytest.raises(tokenizer.TokenizerError, match="'<image_soft_token>' in .* has id 262144"):
    words.prompt("<image_soft_token>")
  settings = json.loads(files.tokenizer_config) | {"eos_token": "<image_soft_token>"}
  with pytest.raises(tokenizer.TokenizerError, match="expected an id below vocab_size = 262144"):
    changed = files._replace(tokenizer_config=json.dumps(settings))
    tokenizer.Tokenizer(changed, vocab_size=262_144)
