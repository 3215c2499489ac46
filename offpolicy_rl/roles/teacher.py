"""Finds the teacher of a configuration, and checks that it can judge the policy's tokens."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl.learner import checkpoint, teacher
from offpolicy_rl.model import decoder, lora, pretrained
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.roles import build, build_learner
from offpolicy_rl.tasks import tokenizer
from offpolicy_rl.tasks.vocabulary import Vocabulary

_KEY = "teacher.checkpoint"
Words = tokenizer.Tokenizer | Vocabulary


class Source(NamedTuple):
  """A teacher that is known to fit, without its weights."""

  directory: pathlib.Path
  model: decoder.DecoderConfig
  words: Words
  load: Callable[[policy_lib.Params], policy_lib.Params]  # tree of shardings -> parameters


def find(config: ConfigDict, policy: build.Policy) -> Source | None:
  """The teacher of a configuration, None if there is none.

  Raises:
    ConfigError: it can't be read, has another vocabulary, or can't be split by the mesh.
  """
  if not config.teacher.checkpoint:
    return None
  directory = pathlib.Path(config.teacher.checkpoint)
  try:
    of_run = (directory / "checkpoints").is_dir()
    found = (_of_run if of_run else _published)(directory, config.model.compute_dtype)
    config_lib.check_architecture(config, dataclasses.asdict(found.model), samples=False)
    _check_vocabulary(found, policy)
  except (ValueError, OSError, checkpoint.CheckpointError) as error:
    raise config_lib.ConfigError(f"{_KEY}: {directory}: {error}") from None
  return found


def make(config: ConfigDict, source: Source, mesh: jax.sharding.Mesh) -> teacher.Teacher:
  """Loads the weights, in the dtype that they compute in, onto the devices of the mesh."""
  shardings = policy_lib.param_shardings(mesh, policy_lib.shapes(source.model))
  choices = build_learner.step_choices(config, source.model, mesh)
  return teacher.Teacher(choices, source.load(shardings), mesh)


def _published(directory: pathlib.Path, dtype: str) -> Source:
  published = pretrained.Checkpoint(directory)
  model = dataclasses.replace(published.config, compute_dtype=dtype)
  words = tokenizer.Tokenizer(tokenizer.read_files(directory), vocab_size=model.vocab_size)
  return Source(directory, model, words, lambda shardings: published.load(shardings, dtype))


def _of_run(directory: pathlib.Path, dtype: str) -> Source:
  settings = config_lib.from_json((directory / "config.json").read_text())
  has_files = (directory / "model").is_dir()
  files = tokenizer.read_files(directory / "model") if has_files else None
  own = build.make_policy(settings, files)
  model = dataclasses.replace(lora.base_config(own.model), compute_dtype=dtype)

  def load(shardings: policy_lib.Params) -> policy_lib.Params:
    params = build_learner.newest_params(directory, own.model)[1]
    return jax.tree.map(_place, policy_lib.cast(model, params), shardings)

  return Source(directory, model, own.tokenizer, load)


def _place(x: jax.Array, sharding: jax.sharding.Sharding) -> jax.Array:
  on_host = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: on_host[index])


def _check_vocabulary(found: Source, policy: build.Policy) -> None:
  """Raises ValueError unless each token of the policy is the same token of the teacher's."""
  size, needed = found.model.vocab_size, policy.model.vocab_size
  if size < needed:
    raise ValueError(f"its model has {size} token ids, expected the {needed} of the policy's")
  theirs, ours = found.words.pieces, policy.tokenizer.pieces
  for number, piece in enumerate(ours):
    got = theirs[number] if number < len(theirs) else None
    if piece is not None and got != piece:
      raise ValueError(f"its token {number} is {got!r:.60}, expected the policy's {piece!r:.60}")
