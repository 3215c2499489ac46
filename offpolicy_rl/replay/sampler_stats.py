"""Statistics of each sampler's completions; a sampler that emits garbage is named.

Only shown and written, never part of an update: runs with exact lag do not depend on who sampled.
"""

import collections
from collections.abc import Mapping, Sequence

import numpy as np

from offpolicy_rl import types

_KEPT = 256  # samplers, those with the latest groups
_WINDOW = 64  # newest completions of each that are compared
_ENOUGH = 8  # completions, before they are compared
# |log-ratio| per token in nats. Lag alone moves it by a few hundredths to tenths, for all samplers
# alike; other weights or damaged memory move it by several.
_LEAST_GAP, _TIMES = 0.5, 4.0


def completion_arrays(groups: Sequence[types.FinishedGroup]) -> dict[str, np.ndarray]:
  """Arrays [N] with the host's knowledge of the completions of a batch, in its order."""
  rows = [(g.group.sampler_id, t) for g in groups for t in g.group.trajectories]
  unknown = types.Seconds(np.nan, np.nan, np.nan)
  seconds = np.array([t.seconds or unknown for _, t in rows]).T
  of_episodes = {f"seconds_{name}": x for name, x in zip(unknown._fields, seconds, strict=True)}
  return of_episodes | {
    "sampler": np.array([sampler_id for sampler_id, _ in rows]),
    "reward": np.array([t.reward for _, t in rows]),
    "verdict": np.array([t.verdict for _, t in rows]),
    "length": np.array([t.tokens.size for _, t in rows]),
  }


class SamplerStats:
  """Remembers the newest completions of every sampler."""

  def __init__(self):
    self._newest: collections.OrderedDict[str, collections.deque] = collections.OrderedDict()
    self._gaps: dict[str, float] = {}  # sampler -> mean |log-ratio| of its newest completions
    self._means: dict[str, dict[str, float]] = {}  # sampler -> of its last batch
    self._unlike: dict[str, float] = {}

  def step(self, rows: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """A batch's completions -> name -> sampler -> mean over its completions of this batch.

    rows: arrays [N]. "sampler", ids; "log_ratio", |learner - sampler| nats per token, mean over a
    completion; any others, e.g. "reward". NaN = unknown for this completion.
    """
    numbers = {name: np.asarray(x, float) for name, x in rows.items() if name != "sampler"}
    means = {name: {} for name in ("completions", *numbers)}
    for sampler_id in np.unique(rows["sampler"]).tolist():
      is_its = rows["sampler"] == sampler_id
      means["completions"][sampler_id] = int(is_its.sum())
      for name, values in numbers.items():
        known = values[is_its & ~np.isnan(values)]
        if known.size:
          means[name][sampler_id] = float(known.mean())
      self._remember(sampler_id, numbers["log_ratio"][is_its])
      self._means[sampler_id] = {n: x[sampler_id] for n, x in means.items() if sampler_id in x}
    self._unlike = self._compare()
    return {name: values for name, values in means.items() if values}

  def _remember(self, sampler_id: str, gaps: np.ndarray) -> None:
    kept = self._newest.setdefault(sampler_id, collections.deque(maxlen=_WINDOW))
    kept.extend(gaps.tolist())
    if len(kept) >= _ENOUGH:
      self._gaps[sampler_id] = float(np.mean(kept))
    self._newest.move_to_end(sampler_id)
    if len(self._newest) > _KEPT:
      forgotten, _ = self._newest.popitem(last=False)
      self._means.pop(forgotten, None)
      self._gaps.pop(forgotten, None)

  def _compare(self) -> dict[str, float]:
    unlike = {}
    for name, gap in self._gaps.items():
      if gap <= _LEAST_GAP:  # false for nan, too
        continue
      others = [other for i, other in self._gaps.items() if i != name]
      if others and not gap <= _TIMES * float(np.median(others)):
        unlike[name] = gap
    return unlike

  def unlike(self) -> dict[str, float]:
    """Samplers whose tokens are unlike the others' -> mean |log-ratio| of their newest ones."""
    return dict(self._unlike)

  def latest(self, sampler_id: str) -> dict[str, float]:
    """Means of a sampler's last batch, and whether it is unlike the others."""
    means = {name: x for name, x in self._means.get(sampler_id, {}).items() if np.isfinite(x)}
    return means | {"unlike": float(sampler_id in self._unlike)} if means else {}
