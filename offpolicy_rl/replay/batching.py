"""Groups -> one rectangular batch: prompt and completion left aligned, padding on the right."""

import numpy as np

from offpolicy_rl import types


def make_batch(groups: list[types.FinishedGroup], *, num_tokens: int) -> types.Batch:
  """Pads whole groups to a batch of `num_tokens` columns; padding tokens are 0.

  Raises:
    ValueError: a row does not fit.
  """
  rows = [(g, t) for g, group in enumerate(groups) for t in group.group.trajectories]
  batch = empty_batch(len(rows), num_tokens)
  for b, (g, trajectory) in enumerate(rows):
    prompt = groups[g].ticket.prompt_tokens
    start, stop = prompt.size, prompt.size + trajectory.tokens.size
    if stop > num_tokens:
      raise ValueError(f"{groups[g].ticket.ticket_id}: {stop} tokens, the batch has {num_tokens}")
    batch.tokens[b, :start] = prompt
    batch.tokens[b, start:stop] = trajectory.tokens
    batch.valid_mask[b, :stop] = True
    batch.loss_mask[b, start:stop] = True
    batch.sampler_logprobs[b, start:stop] = trajectory.logprobs
    batch.versions[b, start:stop] = trajectory.versions
    batch.rewards[b] = trajectory.reward
    batch.group_ids[b] = g
  return batch


def demonstration_batch(
  pairs: list[tuple[np.ndarray, np.ndarray]], *, num_tokens: int
) -> types.Batch:
  """(prompt, demonstration) token pairs -> a batch for the supervised warm start."""
  batch = empty_batch(len(pairs), num_tokens)
  for b, (prompt, target) in enumerate(pairs):
    start, stop = prompt.size, prompt.size + target.size
    if stop > num_tokens:
      raise ValueError(f"demonstration {b}: {stop} tokens, the batch has {num_tokens}")
    batch.tokens[b, :start] = prompt
    batch.tokens[b, start:stop] = target
    batch.valid_mask[b, :stop] = True
    batch.loss_mask[b, start:stop] = True
  return batch


def empty_batch(num_rows: int, num_tokens: int) -> types.Batch:
  """A batch of padding only."""
  shape = (num_rows, num_tokens)
  return types.Batch(
    tokens=np.zeros(shape, np.int32),
    valid_mask=np.zeros(shape, bool),
    loss_mask=np.zeros(shape, bool),
    sampler_logprobs=np.zeros(shape, np.float32),
    versions=np.full(shape, types.NO_VERSION, np.int32),
    rewards=np.zeros(num_rows, np.float32),
    group_ids=np.zeros(num_rows, np.int32),
  )


def lag_metrics(groups: list[types.FinishedGroup], step: int) -> dict:
  """Lag of every token consumed at `step`, split into in flight and in queue.

  in flight = versions published between sampling a token and its group's arrival;
  in queue = versions published between arrival and use. Their sum is the lag.
  """
  versions = [np.concatenate([t.versions for t in g.group.trajectories]) for g in groups]
  lags = step - np.concatenate(versions)
  queue = np.concatenate(
    [np.full(v.size, step - g.arrival_version) for v, g in zip(versions, groups, strict=True)]
  )
  values, counts = np.unique(lags, return_counts=True)
  return {
    "lag/mean": float(lags.mean()),
    "lag/max": int(lags.max()),
    "lag/in_flight_mean": float((lags - queue).mean()),
    "lag/in_queue_mean": float(queue.mean()),
    "lag/histogram": {str(v): int(c) for v, c in zip(values, counts, strict=True)},
  }


def completion_metrics(groups: list[types.FinishedGroup]) -> dict:
  """What only the host knows about a step's completions."""
  trajectories = [t for g in groups for t in g.group.trajectories]
  return {
    "finished_fraction": float(np.mean([t.finished for t in trajectories])),
    "verifier_failures": sum(g.group.verifier_failures for g in groups),
  }
