"""Finds the teacher of a configuration, and checks that it can judge the policy's tokens."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import files as files_lib
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
  fingerprint: Callable[[], str]  # of the weights; reads all files of a published model, once


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


def require_same(source: Source, recorded: str | None) -> None:
  """Raises ConfigError unless its weights are those that a run to resume was taught by.

  `recorded`: their fingerprint; None = unknown.
  """
  if recorded not in (None, source.fingerprint()):
    raise config_lib.ConfigError(
      f"{_KEY}: {source.directory}: got weights with the fingerprint {source.fingerprint()}, "
      f"expected {recorded}, those that the run to resume is taught by: put these back, or choose "
      "another --run_dir for a new run"
    )


def make(config: ConfigDict, source: Source, mesh: jax.sharding.Mesh) -> teacher.Teacher:
  """Loads the weights, in the dtype that they compute in, onto the devices of the mesh."""
  shardings = policy_lib.param_shardings(mesh, policy_lib.shapes(source.model))
  choices = build_learner.step_choices(config, source.model, mesh)
  return teacher.Teacher(choices, source.load(shardings), mesh)


def _published(directory: pathlib.Path, dtype: str) -> Source:
  published = pretrained.Checkpoint(directory)
  model = dataclasses.replace(published.config, compute_dtype=dtype)
  words = tokenizer.Tokenizer(tokenizer.read_files(directory), vocab_size=model.vocab_size)
  load = lambda shardings: published.load(shardings, dtype)

  @functools.cache
  def fingerprint() -> str:
    names = (pretrained.CONFIG, *pretrained.weight_files(directory))
    return _digest({name: files_lib.sha256(directory / name) for name in names})

  return Source(directory, model, words, load, fingerprint)


def _of_run(directory: pathlib.Path, dtype: str) -> Source:
  settings = config_lib.of_run(directory)
  has_files = (directory / "model").is_dir()
  files = tokenizer.read_files(directory / "model") if has_files else None
  own = build.make_policy(settings, files)
  model = dataclasses.replace(lora.base_config(own.model), compute_dtype=dtype)

  def load(shardings: policy_lib.Params) -> policy_lib.Params:
    params = build_learner.newest_params(directory, own.model)[1]
    return jax.tree.map(_place, policy_lib.cast(model, params), shardings)

  fingerprint = lambda: _digest(checkpoint.digests(directory / "checkpoints"))
  return Source(directory, model, own.tokenizer, load, functools.cache(fingerprint))


def _digest(digests: Mapping[str, str]) -> str:
  return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]


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
