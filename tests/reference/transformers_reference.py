"""Runs in an environment of its own with PyTorch and transformers.

  python transformers_reference.py make SEED DIR   random models of all families and their answers
  python transformers_reference.py answer DIR...   the answers of each DIR/model, read anew
  python transformers_reference.py logits DIR...   the same without continuations, for many

Writes DIR/FAMILY/model (a checkpoint as published ones are) and DIR/FAMILY/answers.npz: padded
tokens, their lengths, float32 logits of every position, greedy continuations of the first rows and
by how much each of their tokens beat the second best. A model that transformers does not read gets
error.txt instead, where only logits are wanted.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

SHAPE = dict(
  vocab_size=264,
  hidden_size=48,
  intermediate_size=80,
  num_hidden_layers=4,
  num_attention_heads=6,
  num_key_value_heads=2,
  max_position_embeddings=512,
)
LLAMA3_SCALING = {
  "rope_type": "llama3",
  "rope_theta": 5000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 32,
}


def gemma3(rope_full: dict):
  """Gemma 3 whose windows are shorter than the rows."""
  return transformers.Gemma3TextConfig(
    **SHAPE,
    head_dim=16,
    sliding_window=7,
    query_pre_attn_scalar=24,
    layer_types=["sliding_attention", "full_attention"] * 2,
    rope_parameters={
      "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
      "full_attention": {"rope_theta": 9000.0, **rope_full},
    },
  )


CONFIGS = {
  "llama": lambda: transformers.LlamaConfig(
    **SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
  ),
  "llama-scaled": lambda: transformers.LlamaConfig(
    **SHAPE, rope_parameters=LLAMA3_SCALING, tie_word_embeddings=True
  ),
  "llama-linear": lambda: transformers.LlamaConfig(
    **SHAPE, head_dim=12, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
  ),
  "qwen2": lambda: transformers.Qwen2Config(**SHAPE, tie_word_embeddings=True),
  "qwen3": lambda: transformers.Qwen3Config(**SHAPE, head_dim=20),
  "gemma3": lambda: gemma3({"rope_type": "default"}),
  "gemma3-linear": lambda: gemma3({"rope_type": "linear", "factor": 8.0}),
  "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
    **SHAPE,
    head_dim=20,
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=24,
    norm_topk_prob=True,
  ),
  "gemma2": lambda: transformers.Gemma2Config(
    **SHAPE,
    head_dim=16,
    sliding_window=7,
    query_pre_attn_scalar=24,
    attn_logit_softcapping=2.0,
    final_logit_softcapping=3.0,
  ),
}
ROWS, LONGEST = 5, 40
GREEDY_ROWS, GREEDY_TOKENS = 4, 64


def greedy(model, row: list[int]) -> tuple[list[int], list[float]]:
  """New tokens and their leads; the whole row goes through the model for each: slow and simple."""
  leads = []
  for _ in range(GREEDY_TOKENS):
    top = model(torch.tensor([row])).logits[0, -1].topk(2)
    row = row + [int(top.indices[0])]
    leads.append(float(top.values[0] - top.values[1]))
  return row[-GREEDY_TOKENS:], leads


def open_model(folder: pathlib.Path):
  """The model in folder/model."""
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder / "model", attn_implementation="eager", dtype=torch.float32
  ).eval()


def answers(model, seed: int) -> dict:
  """Random tokens of ragged rows, and their logits."""
  draw = np.random.default_rng(seed)
  lengths = draw.integers(5, LONGEST + 1, ROWS)
  tokens = draw.integers(0, SHAPE["vocab_size"], (ROWS, LONGEST))
  logits = np.zeros((ROWS, LONGEST, SHAPE["vocab_size"]), np.float32)
  for i, length in enumerate(lengths):
    logits[i, :length] = model(torch.tensor(tokens[i : i + 1, :length])).logits[0].numpy()
  return {"tokens": tokens, "lengths": lengths, "logits": logits}


def answer(folder: pathlib.Path, seed: int) -> None:
  """Writes answers.npz beside folder/model."""
  model = open_model(folder)
  found = answers(model, seed)
  rows = zip(found["tokens"][:GREEDY_ROWS], found["lengths"], strict=False)
  new, leads = zip(*(greedy(model, row[:length].tolist()) for row, length in rows), strict=True)
  np.savez(folder / "answers.npz", **found, greedy=new, leads=leads)


def logits_or_error(folder: pathlib.Path) -> None:
  """Writes answers.npz beside folder/model, or error.txt."""
  try:
    np.savez(folder / "answers.npz", **answers(open_model(folder), 0))
  except Exception as error:  # whatever transformers raises is an answer
    (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")


def make(seed: int, folder: pathlib.Path) -> None:
  """Random models of all families with their answers."""
  for number, (family, config) in enumerate(CONFIGS.items()):
    torch.manual_seed(seed + number)
    model = transformers.AutoModelForCausalLM.from_config(config())
    for parameter in model.parameters():  # nothing may be 0 or 1 by default
      parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder / family / "model")
    answer(folder / family, seed + number)


if __name__ == "__main__":
  transformers.utils.logging.disable_progress_bar()
  torch.set_num_threads(1)
  torch.set_grad_enabled(False)
  if sys.argv[1] == "make":
    make(int(sys.argv[2]), pathlib.Path(sys.argv[3]))
  elif sys.argv[1] == "logits":
    transformers.utils.logging.set_verbosity_error()
    for name in sys.argv[2:]:
      logits_or_error(pathlib.Path(name))
  else:
    for name in sys.argv[2:]:
      answer(pathlib.Path(name), 0)
