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
  """The small files of model.checkpoint, or a run's copies of them; None if its model was fresh.

  Writes nothing: the run may be someone else's.
  """
  if not config.model.checkpoint:
    return None
  source = pathlib.Path(config.model.checkpoint)
  if run_dir is not None and (run_dir / "model").is_dir():
    source = run_dir / "model"
  return tokenizer.read_files(source)


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
