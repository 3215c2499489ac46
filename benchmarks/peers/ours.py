"""Our side: the sampler's engine and the learner's step."""

import dataclasses
import sys

import jax
import numpy as np

from benchmarks.peers import work
from offpolicy_rl import losses, types
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.learner import step
from offpolicy_rl.model import decoder, policy, sharding
from offpolicy_rl.replay import batching, packing
from offpolicy_rl.sampler import engine, sizing, stopping
from offpolicy_rl.system import memory


def model(shape: dict) -> decoder.DecoderConfig:
  """Llama of this shape."""
  return decoder.DecoderConfig(
    vocab_size=shape["vocabulary"],
    num_layers=shape["layers"],
    width=shape["width"],
    num_heads=shape["heads"],
    num_kv_heads=shape["kv_heads"],
    head_dim=shape["width"] // shape["heads"],
    mlp_width=shape["mlp"],
    rope_theta=1e4,
    norm_eps=1e-5,
    tied_embeddings=True,
    scaled_embeddings=False,
  )


def generator(config, *, most: int = work.MOST, ends=None, chosen=lambda prompts: prompts):
  """Turn -> tokens made."""
  sizes = sizing.Sizes(work.SLOTS, work.GROUP_SIZE, work.PROMPT, most, page_tokens=64)
  stops = stopping.Stops(tuple(work.ends(config.vocab_size) if ends is None else ends))
  machine = engine.Engine(config, sizes, stops=stops, seed=0)
  params = policy.init(config, jax.random.key(0))

  def generate(turn: int) -> int:
    tickets = [
      types.Ticket(
        f"{turn}/{i}",
        types.TRAIN,
        turn,
        turn * work.GROUPS + i,
        prompt,
        "",
        0,
        0,
        work.GROUP_SIZE,
        1.0,
      )
      for i, prompt in enumerate(chosen(work.prompts(config.vocab_size, turn)))
    ]
    groups = machine.generate(params, 0, tickets)
    return sum(t.tokens.size for group in groups for t in group)

  return generate


def decoder_only(config):
  """Turn -> tokens made, every slot in use until the end."""
  return generator(config, most=work.FULL, ends=(-1,), chosen=work.filling)


def trainer(config):
  """Turn -> tokens trained on."""
  mesh = sharding.make_mesh()
  jax.sharding.set_mesh(mesh)
  optimizer = state_lib.make_optimizer(learning_rate=1e-6, num_steps=100)
  objective = losses.objective("beta_shift", beta=0.1)
  choices = step.StepChoices(
    dataclasses.replace(config, remat="dots"), objective, optimizer, 1.0, logprob_chunk=32
  )
  state = state_lib.create(config, mesh, optimizer, 0)
  compiled = step.compile_step(choices, state_lib.shardings(config, mesh, optimizer))
  length = work.COLUMNS - work.PROMPT
  limits = packing.Limits(packing.PADDED, work.PROMPT, length, work.COLUMNS)

  def train(turn: int) -> int:
    nonlocal state
    groups = []
    for i, row in enumerate(work.rows(config.vocab_size, turn)):
      ticket = types.Ticket(str(i), types.TRAIN, 0, i, row[: work.PROMPT], "", 0, 0, 1, 1.0)
      made = types.Trajectory(
        row[work.PROMPT :],
        np.full(length, -10.0, np.float32),
        np.zeros(length, np.int32),
        True,
        float(i % 2),
      )
      groups.append(types.FinishedGroup(ticket, types.Group(str(i), (made,)), 0))
    batch = state_lib.place_batch(mesh, batching.make_batch(groups, limits))
    state, _ = compiled(state, batch, None)
    jax.block_until_ready(state)
    return work.ROWS * work.COLUMNS

  return train


def main() -> None:
  """ours.py SHAPE generate|decode|train"""
  memory.keep_freed_memory()
  config = model(work.SHAPES[sys.argv[1]])
  job = {"generate": generator, "decode": decoder_only, "train": trainer}[sys.argv[2]]
  work.serve({sys.argv[2]: job(config)})


if __name__ == "__main__":
  main()
