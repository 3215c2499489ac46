"""The other side: Tunix's own sampler as its rollouts call it, and its trainer's step of GRPO.

Runs in an environment of its own (`make .venv-tunix/.installed`); no weights are exchanged, both
sides have random ones of the same shape.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import work
from flax import nnx
from tunix.generate import sampler
from tunix.models.llama3 import model as llama3
from tunix.rl import algo_core, common, trainer
from tunix.rl.grpo import grpo_learner


class Words:
  """A tokenizer whose words are token numbers; nothing is added."""

  def encode(self, text, **_):
    return [int(word) for word in text.split()]

  def decode(self, ids, **_):
    return " ".join(map(str, ids))

  def bos_id(self):
    return 0  # none is put before a prompt

  def eos_id(self):
    return 1

  def pad_id(self):
    return 0


def model(shape: dict, remat: str = "NONE"):
  """Llama of this shape, float32, on a mesh of one device."""
  config = llama3.ModelConfig(
    num_layers=shape["layers"],
    vocab_size=shape["vocabulary"],
    embed_dim=shape["width"],
    hidden_dim=shape["mlp"],
    num_heads=shape["heads"],
    num_kv_heads=shape["kv_heads"],
    head_dim=shape["width"] // shape["heads"],
    rope_theta=10_000,
    norm_eps=1e-5,
    weight_tying=True,
    remat_config=llama3.RematConfig[remat],
  )
  llama = llama3.Llama3(config, rngs=nnx.Rngs(0))
  keys = iter(jax.random.split(jax.random.key(0), 1000))
  draw = lambda x: 0.02 * jax.random.normal(next(keys), x.shape, x.dtype)
  nnx.update(llama, jax.tree.map(draw, nnx.state(llama)))  # it starts MLPs at zero
  return llama


def generator(llama, vocabulary: int):
  """Turn -> tokens made: as many rows as there are slots at a time, until the longest one ends."""
  config = llama.config
  length = work.PROMPT + work.MOST
  cache = sampler.CacheConfig(length, config.num_layers, config.num_kv_heads, config.head_dim)
  made_by = sampler.Sampler(llama, Words(), cache)
  ends = work.ends(vocabulary)

  def generate(turn: int) -> int:
    prompts = work.prompts(vocabulary, turn)
    prompts[:, 0] = np.maximum(prompts[:, 0], 2)  # token 0 is its padding, on the left
    texts = [Words().decode(p) for p in prompts for _ in range(work.GROUP_SIZE)]
    made = 0
    for first in range(0, len(texts), work.SLOTS):
      out = made_by(
        texts[first : first + work.SLOTS],
        max_generation_steps=work.MOST,
        max_prompt_length=work.PROMPT,
        eos_tokens=ends,
        temperature=1.0,
        top_p=1.0,
        return_logprobs=True,
        seed=1000 * turn + first,
      )
      made += sum(min(len(tokens) + 1, work.MOST) for tokens in out.tokens)  # ends are cut off
    return made

  return generate


def optimizing(llama, vocabulary: int):
  """Turn -> tokens trained on: GRPO, AdamW with a clipped norm."""
  settings = grpo_learner.GRPOConfig(num_generations=2, num_iterations=1, beta=0.0)
  settings.temperature = 1.0
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(1e-6, b1=0.9, b2=0.95, weight_decay=0.0)
  )
  chosen = trainer.peft_trainer.TrainingConfig(eval_every_n_steps=10**9, max_steps=10**6)
  learner = trainer.Trainer(llama, optimizer, chosen, custom_checkpoint_metadata_fn=dict)
  loss = lambda model, train_example: algo_core.grpo_loss_fn(
    model, train_example, settings, pad_id=0, eos_id=1
  )
  learner.with_loss_fn(loss, has_aux=True)
  learner.with_gen_model_input_fn(lambda example: {"train_example": example})
  step, _ = learner.jit_train_and_eval_step()

  def train(turn: int) -> int:
    rows = np.maximum(work.rows(vocabulary, turn), 2)  # no padding among them
    prompts, completions = jnp.asarray(rows[:, : work.PROMPT]), jnp.asarray(rows[:, work.PROMPT :])
    example = common.TrainExample(
      prompt_ids=prompts,
      prompt_mask=jnp.ones_like(prompts),
      completion_ids=completions,
      completion_mask=jnp.ones_like(completions),
      ref_per_token_logps=None,
      advantages=jnp.asarray([1.0, -1.0] * (work.ROWS // 2)),
      old_per_token_logps=jnp.full(completions.shape, -10.0),
    )
    jax.block_until_ready(step(example))
    return rows.size

  return train


def main() -> None:
  """tunix_side.py SHAPE generate|train [REMAT]"""
  shape = work.SHAPES[sys.argv[1]]
  job = {"generate": generator, "train": optimizing}[sys.argv[2]]
  with jax.sharding.Mesh(np.array(jax.devices()).reshape(1, 1), ("fsdp", "tp")):
    llama = model(shape, *sys.argv[3:])
    work.serve({sys.argv[2]: job(llama, shape["vocabulary"])})


if __name__ == "__main__":
  main()
