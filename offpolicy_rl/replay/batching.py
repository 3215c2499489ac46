"""Groups -> the arrays of one step."""

from collections.abc import Sequence

import numpy as np

from offpolicy_rl import types
from offpolicy_rl.replay import packing
from offpolicy_rl.replay.packing import Completion, Limits

_ENDS = {
  types.DONE: "episode/done",
  types.TURN_LIMIT: "episode/turns_limit",
  types.TOKEN_LIMIT: "episode/tokens_limit",
  types.TIME_LIMIT: "episode/time_limit",
  types.FAILED: "episode/failed",
}


def make_batch(groups: list[types.FinishedGroup], limits: Limits, parts: int = 1) -> types.Batch:
  """Lays out groups, in order, as `parts` equal parts; ValueError if one does not fit."""
  rows = [(g, t) for g, group in enumerate(groups) for t in group.group.trajectories]
  prompts = [group.ticket.prompt_tokens for group in groups]
  candidates = [t.candidates.tokens if t.candidates else None for _, t in rows]
  completions = [
    Completion(g, prompts[g], t.tokens, chosen, t.rewinds)
    for (g, t), chosen in zip(rows, candidates, strict=True)
  ]
  batch = _batch(completions, limits, parts)
  for n, (_, trajectory) in enumerate(rows):
    at, size = divmod(n, batch.rewards.shape[1]), trajectory.tokens.size
    batch.sampler_logprobs[at][:size] = trajectory.logprobs
    batch.versions[at][:size] = trajectory.versions
    batch.loss_mask[at][:size] = trajectory.sampled
    batch.rewards[at], batch.verdicts[at] = trajectory.reward, trajectory.verdict
    if trajectory.candidates is not None:
      batch.candidate_logprobs[at][:size] = trajectory.candidates.logprobs
  return batch


def demonstration_batch(
  pairs: Sequence[tuple[np.ndarray, np.ndarray]], limits: Limits
) -> types.Batch:
  """Pairs of (prompt, demonstration) tokens -> a batch for the supervised warm start."""
  return _batch([Completion(n, *pair) for n, pair in enumerate(pairs)], limits, parts=1)


def _batch(completions: list[Completion], limits: Limits, parts: int) -> types.Batch:
  count = len(completions) // parts
  divided = [completions[p * count : (p + 1) * count] for p in range(parts)]
  rows, places = packing.lay_out(divided, limits)
  lengths = np.array([[c.tokens.size for c in part] for part in divided])
  likeliest = rows.candidates
  return types.Batch(
    rows=rows,
    places=places,
    loss_mask=np.arange(places.shape[-1]) < lengths[..., None],
    sampler_logprobs=np.zeros(places.shape, np.float32),
    versions=np.full(places.shape, types.NO_VERSION, np.int32),
    rewards=np.zeros(places.shape[:2], np.float32),
    verdicts=np.zeros(places.shape[:2], np.float32),
    group_ids=np.array([[c.group for c in part] for part in divided], np.int32),
    candidate_logprobs=(
      None if likeliest is None else np.zeros((*places.shape, likeliest.shape[-1]), np.float32)
    ),
  )


def lag_metrics(groups: list[types.FinishedGroup], step: int) -> dict:
  """Lag of every sampled token consumed at `step`, split into in flight and in queue.

  in flight = versions published between sampling a token and its group's arrival;
  in queue = versions published between arrival and use. Their sum is the lag. If the learner was
  killed, a group may have arrived at a later version than the present one, or before there was any:
  counting begins with the version that sampled it and ends with `step`.
  """
  versions = [g.group.sampled_versions() for g in groups]
  lags = step - np.concatenate(versions)
  arrivals = [max(g.arrival_version, v.max()) for v, g in zip(versions, groups, strict=True)]
  queue = step - np.repeat(np.minimum(arrivals, step), [v.size for v in versions])
  return {
    "lag/mean": float(lags.mean()),
    "lag/max": int(lags.max()),
    "lag/in_flight_mean": float((lags - queue).mean()),
    "lag/in_queue_mean": float(queue.mean()),
    "lag/histogram": _histogram(lags),
    "lag/in_flight_histogram": _histogram(lags - queue),
    "lag/in_queue_histogram": _histogram(queue),
  }


def _histogram(lags: np.ndarray) -> dict[str, int]:
  values, counts = np.unique(lags, return_counts=True)
  return {str(v): int(c) for v, c in zip(values, counts, strict=True)}


def lengths(groups: list[types.FinishedGroup]) -> list[tuple[int, list[int]]]:
  """(tokens of the prompt, tokens of each completion) of every group."""
  return [
    (g.ticket.prompt_tokens.size, [t.tokens.size for t in g.group.trajectories]) for g in groups
  ]


def completion_metrics(groups: list[types.FinishedGroup]) -> dict:
  """Metrics of a step's completions that only the host can compute."""
  trajectories = [t for g in groups for t in g.group.trajectories]
  failures = sum(g.group.verifier_failures for g in groups)
  return {
    "finished_fraction": float(np.mean([t.finished for t in trajectories])),
    "verifier_failures": failures,
    "alarm/nothing_judged": float(failures == len(trajectories)),
    **_episode_metrics([t for t in trajectories if t.ended]),
  }


def rubric_metrics(groups: list[types.FinishedGroup], names: Sequence[str]) -> dict:
  """Mean score of each part of a rubric over the completions that a judge graded; {} without."""
  graded = [t.parts for g in groups for t in g.group.trajectories if len(t.parts) == len(names) > 0]
  if not graded:
    return {}
  return {"rubric": dict(zip(names, np.mean(graded, axis=0).tolist(), strict=True))}


def _episode_metrics(episodes: list[types.Trajectory]) -> dict[str, float]:
  """Turns, tokens of environments, and how episodes ended; {} without any."""
  if not episodes:
    return {}
  return {
    "episode/turns": float(np.mean([len(t.turn_rewards) for t in episodes])),
    "episode/environment_tokens": float(np.mean([np.sum(~t.sampled) for t in episodes])),
    **{name: float(np.mean([t.ended == end for t in episodes])) for end, name in _ENDS.items()},
    **_seconds([t.seconds for t in episodes if t.seconds is not None]),
  }


def _seconds(known: list[types.Seconds]) -> dict[str, float]:
  if not known:
    return {}
  world, queue, model = np.mean(known, axis=0).tolist()
  return {
    "episode/seconds_world": world,
    "episode/seconds_queue": queue,
    "episode/seconds_model": model,
  }
