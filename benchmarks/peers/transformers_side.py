"""The other side: `generate` of transformers, and a step in PyTorch. Runs in the tests' reference
environment, which has no JAX."""

import sys

import torch
import transformers
import work


def model(shape: dict) -> transformers.LlamaForCausalLM:
  """Llama of this shape, float32."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=shape["vocabulary"],
    num_hidden_layers=shape["layers"],
    hidden_size=shape["width"],
    num_attention_heads=shape["heads"],
    num_key_value_heads=shape["kv_heads"],
    intermediate_size=shape["mlp"],
    tie_word_embeddings=True,
    rms_norm_eps=1e-5,
    max_position_embeddings=1024,
  )
  return transformers.LlamaForCausalLM(config)


def generator(llama, vocabulary: int):
  """Turn -> tokens made: as many rows as there are slots at a time, until the longest one ends."""
  ends = work.ends(vocabulary)
  stop = torch.tensor(ends)

  @torch.inference_mode()
  def generate(turn: int) -> int:
    torch.manual_seed(turn)
    prompts = torch.from_numpy(work.prompts(vocabulary, turn)).long()
    prompts = prompts.repeat_interleave(work.GROUP_SIZE, 0)
    made = 0
    for first in range(0, len(prompts), work.SLOTS):
      batch = prompts[first : first + work.SLOTS]
      out = llama.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=work.MOST,
        eos_token_id=ends,
        pad_token_id=0,
      )[:, work.PROMPT :]
      ended = torch.isin(out, stop)
      lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, out.shape[1])
      made += int(lengths.sum())
    return made

  return generate


def trainer(llama, vocabulary: int):
  """Turn -> tokens trained on: forward, log-probabilities, backward, AdamW with a clipped norm."""
  optimizer = torch.optim.AdamW(llama.parameters(), lr=1e-6, weight_decay=0.0)
  llama.train()

  def train(turn: int) -> int:
    tokens = torch.from_numpy(work.rows(vocabulary, turn)).long()
    logits = llama(tokens).logits[:, work.PROMPT - 1 : -1]
    targets = tokens[:, work.PROMPT :]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return work.ROWS * work.COLUMNS

  return train


def main() -> None:
  """transformers_side.py SHAPE generate|train"""
  shape = work.SHAPES[sys.argv[1]]
  job = {"generate": generator, "train": trainer}[sys.argv[2]]
  work.serve({sys.argv[2]: job(model(shape), shape["vocabulary"])})


if __name__ == "__main__":
  main()
