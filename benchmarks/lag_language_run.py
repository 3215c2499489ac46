"""One run of benchmarks/lag_language.py: (objective, learning rate, lag, seed) -> its row."""

import hashlib
import pathlib
import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import in_process, lag_language, language_task
from benchmarks.machine import machine
from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.evaluation import estimates
from offpolicy_rl.learner import step

KS = (1, 2, 4, 8, 16, 32, 64)  # of pass@k at the end
# Name in a row -> metric of training; points of a curve are means since the one before.
METRICS = {
  "reward": "verdict",
  "ess": "log_ratio/ess_fraction",
  "log_ratio": "log_ratio/mean",
  "token_entropy": "entropy",
}


def configuration(job: lag_language.Job, study: lag_language.Study) -> ConfigDict:
  """The card of the task with the job's objective, learning rate, lag and seed."""
  config = language_task.get_config()
  config.learner.steps, config.warm_start.steps = study.steps, study.warm_steps
  config.update_from_flattened_dict(lag_language.settings(job))
  config_lib.validate(config)
  return config


def warm_path(folder: pathlib.Path, seed: int, study: lag_language.Study) -> pathlib.Path:
  """The parameters that every run of a seed begins with."""
  return folder / f"warm-{seed}-{study.warm_steps}.npz"


def warm_start(seed: int, study: lag_language.Study, folder: pathlib.Path) -> float:
  """Makes the warm start of a seed unless it is there; returns the seconds that it took.

  It is the same to the bit on the same kind of processor.
  """
  start = time.monotonic()
  job = lag_language.Job("grpo", None, study.learning_rates[0], 0, seed)  # any objective
  run = in_process.Run(configuration(job, study))
  run.saved_warm_start(warm_path(folder, seed, study))
  return time.monotonic() - start


def digest(path: pathlib.Path) -> str | None:
  """Of the parameters in a file that `warm_start` has written; None if there is none."""
  if not path.exists():
    return None
  found = hashlib.sha256()
  with np.load(path) as kept:
    for name in sorted(kept):
      found.update(name.encode() + np.ascontiguousarray(kept[name]).tobytes())
  return found.hexdigest()[:16]


def train(job: lag_language.Job, study: lag_language.Study, folder: pathlib.Path) -> dict:
  """Makes one run; returns its row: settings, curves, values at the end, seconds."""
  start = time.monotonic()
  run = in_process.Run(configuration(job, study))
  watch = _Watch(run, study)
  run.train(run.saved_warm_start(warm_path(folder, job.seed, study)), watch)
  return {
    **job._asdict(),
    "start": digest(warm_path(folder, job.seed, study)),
    "steps": study.steps,
    "warm_steps": study.warm_steps,
    "curve": watch.curve,
    "noise": watch.noise,
    "final": watch.final,
    "seconds": round(time.monotonic() - start, 1),
    "machine": machine(),
  }


class _Watch:
  """Called with every version of a run; keeps what a row says."""

  def __init__(self, run: in_process.Run, study: lag_language.Study):
    self._run, self._study = run, study
    self._metrics: list[dict] = []  # since the last point of the curve
    self.curve: dict[str, list[float]] = {}
    self.noise: list[float] = []  # variance / squared norm of the gradient
    self.final: dict[str, float] = {}

  def __call__(self, version: in_process.Version) -> None:
    study = self._study
    if version.metrics:
      self._metrics.append({name: version.metrics[key] for name, key in METRICS.items()})
    if version.number % study.every == 0:
      groups = self._evaluate(version, study.completions)
      self._add({"step": version.number, **accuracies(groups, ks=(1,))} | self._means())
    if version.number in study.noise_versions and version.batch is not None:
      found = step.gradient_noise(
        self._run.choices,
        version.params,
        version.batch,
        version.number,
        num_groups=self._run.config.learner.prompts_per_step,
      )
      self.noise.append(short(float(found["variance"] / found["squared_norm"])))
    if version.number == study.steps:
      groups = self._evaluate(version, study.final_completions)
      ks = [k for k in KS if k <= study.final_completions]
      self.final = accuracies(groups, ks) | {"entropy_right": short(entropy_right(groups))}

  def _evaluate(self, version: in_process.Version, completions: int):
    return self._run.evaluate(
      version.params, version.number, problems=self._study.problems, completions=completions
    )

  def _means(self) -> dict[str, float]:
    rows, self._metrics = jax.device_get(self._metrics), []
    if not rows:  # before the first update
      return {}
    return {name: short(float(np.mean([row[name] for row in rows]))) for name in METRICS}

  def _add(self, point: dict[str, float]) -> None:
    for name, value in point.items():
      self.curve.setdefault(name, []).append(value)


def accuracies(groups: Sequence[types.FinishedGroup], ks: Sequence[int]) -> dict[str, float]:
  """pass@k over the problems for each k, and the entropy of a completion in nats."""
  counts = [(len(r), sum(r)) for r in map(_right, groups)]
  chances = [t.logprobs.sum() for group in groups for t in group.group.trajectories]
  scores = {
    f"pass@{k}": short(statistics.fmean(estimates.pass_at_k(*count, k) for count in counts))
    for k in ks
  }
  return scores | {"entropy": short(-float(np.mean(chances)))}


def entropy_right(groups: Sequence[types.FinishedGroup]) -> float:
  """Entropy of a prompt's right completions in nats, mean over prompts that have one; else NaN.

  H(y | right) = E[-log p(y) | right] + log P(right): both from the same completions, drawn from p.
  """
  values = []
  for group in groups:
    right = _right(group)
    chances = [t.logprobs.sum() for t in group.group.trajectories]
    if any(right):
      surprise = -np.mean([c for c, is_right in zip(chances, right, strict=True) if is_right])
      values.append(surprise + np.log(np.mean(right)))
  return float(np.mean(values)) if values else float("nan")


def _right(group: types.FinishedGroup) -> list[bool]:
  return [trajectory.verdict == 1.0 for trajectory in group.group.trajectories]


def short(value: float) -> float:
  """Five digits, for rows that are kept in the repository."""
  return float(f"{value:.5g}")
