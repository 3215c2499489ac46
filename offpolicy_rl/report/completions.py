"""Recorded completions for browser.js: as many as fit into a page, spread over the run."""

import itertools
import math
from collections.abc import Sequence

from offpolicy_rl.report import episodes

_GROUPS = 80  # at most
_TOKENS = 40_000  # at most, of all shown groups together
_HEAD, _TAIL = 700, 300  # tokens shown of a longer completion


def for_browser(samples: Sequence[dict]) -> dict:
  """Makes {"groups": [...], "range": nats of the strongest colour}; texts are not escaped.

  A completion: reward, finished, pieces [M], gap (tokens left out after piece `_HEAD`, 0 = none),
  versions [[version, tokens], ...] (None: an environment wrote them), sampler and ratios [M] in
  thousandths of a nat, rewinds [[piece, first, last], ...] (from that piece on, tokens first to
  last, counted from 1, are not read), turns (0 = no episode) and blocks (`episodes.blocks`). In
  runs that did not write these, the lists are [] and pieces is the entire text.
  """
  if not samples:
    return {"groups": [], "range": 1.0}
  most = max(2, min(_GROUPS, _TOKENS // max(1, max(_tokens(s) for s in samples))))
  every = _rewards_turns(samples)
  groups = [_group(sample, every) for sample in spread(samples, most)]
  known = [r for g in groups for c in g["completions"] for r in c["ratios"] if r is not None]
  ratios = sorted(map(abs, known))
  strongest = ratios[len(ratios) * 98 // 100] / 1000 if ratios else 1.0
  return {"groups": groups, "range": max(0.01, float(f"{strongest:.2g}"))}


def spread(samples: Sequence[dict], most: int) -> list[dict]:
  """At most `most` samples at equal distances, with the first and the last."""
  if len(samples) <= most:
    return list(samples)
  return [samples[round(i * (len(samples) - 1) / (most - 1))] for i in range(most)]


def _tokens(sample: dict) -> int:
  pieces = [completion.get("pieces", ()) for completion in sample["completions"]]
  return sum(min(len(row), _HEAD + _TAIL) for row in pieces)


def _rewards_turns(samples: Sequence[dict]) -> bool:
  """Whether a turn before the last one of an episode has a reward."""
  completions = itertools.chain.from_iterable(sample["completions"] for sample in samples)
  return any(any(completion.get("turn_rewards", ())[:-1]) for completion in completions)


def _group(sample: dict, every_reward: bool) -> dict:
  return {
    "step": sample["step"],
    "arrival": sample.get("arrival"),
    "prompt": sample["prompt"],
    "completions": [_completion(c, sample["version"], every_reward) for c in sample["completions"]],
  }


def _completion(completion: dict, version: int, every_reward: bool) -> dict:
  pieces = completion.get("pieces", [completion["text"]])
  left_out = max(0, len(pieces) - _HEAD - _TAIL)
  cut = lambda row: [*row[:_HEAD], *row[_HEAD + left_out :]]
  thousandths = lambda row: [round(1000 * x) if math.isfinite(x) else None for x in cut(row)]
  runs = completion.get("versions", [[version, len(pieces)]])
  versions = list(itertools.chain.from_iterable([v] * n for v, n in runs))
  shown = cut(range(len(pieces)))
  rewards = [_number(r) for r in completion.get("turn_rewards", ())]
  told = [r if r or every_reward else None for r in rewards]
  rewinds = [[at, to] for at, to in completion.get("rewinds", ()) if at in shown]
  return {
    "reward": _number(completion["reward"]),
    "finished": completion.get("finished"),
    "ended": completion.get("ended"),  # of an episode
    "tokens": len(pieces) if "pieces" in completion else None,
    "pieces": cut(pieces),
    "gap": left_out,
    "versions": [[v, len(list(same))] for v, same in itertools.groupby(cut(versions))],
    "sampler": thousandths(completion.get("sampler_logprobs", [])),
    "ratios": thousandths(completion.get("log_ratios", [])),
    "rewinds": [[shown.index(at), to + 1, at] for at, to in rewinds],
    "turns": len(rewards),
    "blocks": episodes.blocks(pieces, versions, told, shown),
  }


def _number(reward: float) -> float | None:
  return reward if math.isfinite(reward) else None
