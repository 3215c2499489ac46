"""A trained policy: that of a published checkpoint, or of a run's newest one."""

import pathlib

import jax
from ml_collections import ConfigDict

from offpolicy_rl import types
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.model import pretrained, sharding
from offpolicy_rl.roles import build, build_learner
from offpolicy_rl.tasks import tokenizer


def model_files(config: ConfigDict, run_dir: pathlib.Path | None) -> types.ModelFiles | None:
  """The small files of model.checkpoint, or of a run, which has none if its model was fresh."""
  if run_dir is None:
    return tokenizer.read_files(pathlib.Path(config.model.checkpoint))
  return build.model_files(config, run_dir, resume=True)


def weights(
  config: ConfigDict, policy: build.Policy, run_dir: pathlib.Path | None
) -> tuple[int | None, dict]:
  """(step of the run, parameters on the mesh of an engine).

  Raises:
    RuntimeError, ValueError, OSError: they can't be read.
  """
  mesh = sharding.make_mesh()
  if run_dir is not None:
    step, params = build_learner.newest_params(run_dir, policy.model)
    return step, jax.device_put(params, policy_lib.param_shardings(mesh, params))
  published = pretrained.Checkpoint(pathlib.Path(config.model.checkpoint))
  shapes = policy_lib.shapes(published.config)
  return None, published.load(policy_lib.param_shardings(mesh, shapes))
