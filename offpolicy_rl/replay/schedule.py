"""The lag schedule of a run: the version that sampled each group of each step.

Every run writes it, one JSON line per step, so that an async run can be repeated to the bit
(`--replay=FILE`). The first line holds the run's configuration.
"""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from offpolicy_rl import types

FILE = "lag_schedule.jsonl"


class ScheduleError(ValueError):
  """No run can follow this file; names the line and what was expected."""


class Schedule(NamedTuple):
  """A recorded run."""

  config_json: str
  versions: list[list[int]]  # [step][group], the version that sampled it
  digests: list[list[str]]  # [step][group], of the group's content
  oldest: list[int]  # [step + 1], oldest version that this step or a later one needs
  attempts: list[list[int]]  # [step][group], times it was replaced (replay/dynamic_sampling.py)


def digest(group: types.Group) -> str:
  """Short fingerprint of all that training takes from a group, completion by completion."""
  content = hashlib.blake2b(digest_size=8)
  for t in group.trajectories:
    optional = (*(t.candidates or ()), np.array(t.rewinds, np.int32))
    for array in (t.tokens, t.logprobs, t.versions, np.float32(t.reward), *optional):
      content.update(np.ascontiguousarray(array).tobytes())
  return content.hexdigest()


def row(step: int, groups: Sequence[types.FinishedGroup]) -> dict:
  """The groups that a step consumed, for the file; one of several versions has a list of them."""
  versions = []
  for finished in groups:
    used = np.unique(finished.group.sampled_versions()).tolist()
    versions.append(used[0] if len(used) == 1 else used)
  return {
    "step": step,
    "versions": versions,
    "arrivals": [finished.arrival_version for finished in groups],
    "digests": [digest(finished.group) for finished in groups],
    # The last part of a ticket's id is explained at `admission.ticket_ids`.
    "attempts": [int(g.ticket.ticket_id.rpartition("/")[2]) // len(groups) for g in groups],
  }


def _records(text: str) -> list[dict]:
  """The lines; without the last one if a kill cut it."""
  *lines, last = text.splitlines() or [""]
  records = [json.loads(line) for line in lines]
  try:
    return [*records, json.loads(last)]
  except ValueError:
    if text.endswith("\n") or not records:
      raise
    return records


def read(path: pathlib.Path) -> Schedule:
  """Reads a schedule; ScheduleError if missing, damaged, or with several versions of a group."""
  if not path.is_file():
    raise ScheduleError(f"--replay: no file {path}, expected the {FILE} of a run")
  try:
    header, *rows = _records(path.read_text(encoding="utf-8"))
    config_json = json.dumps(header["config"])
    versions = [r["versions"] for r in rows]
    digests = [r["digests"] for r in rows]
    attempts = [r["attempts"] for r in rows]
    steps = [r["step"] for r in rows]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ScheduleError(f"--replay: {path} is no lag schedule: {error!r}") from None
  if steps != list(range(len(rows))):
    raise ScheduleError(f"--replay: {path}: got steps {steps[:5]}..., expected 0, 1, 2, ...")
  for step, lists in enumerate(zip(versions, digests, attempts, strict=True)):
    if not (all(isinstance(x, list) and len(x) == len(lists[0]) for x in lists) and lists[0]):
      raise ScheduleError(
        f"--replay: {path}: step {step}: got versions {lists[0]!r}, digests {lists[1]!r}, attempts "
        f"{lists[2]!r}, expected a list of each, one entry per group"
      )
    if not all(type(x) is int and x >= 0 for x in lists[2]):
      raise ScheduleError(
        f"--replay: {path}: step {step}: got attempts {lists[2]!r}, expected counts"
      )
    used = lists[0]
    for group, version in enumerate(used):
      if not isinstance(version, int) or not 0 <= version <= step:
        raise ScheduleError(
          f"--replay: {path}: step {step}, group {group}: got version {version!r}, expected one "
          f"version in [0, {step}]"
        )
  oldest = [len(versions)]
  for used in reversed(versions):
    oldest.append(min(oldest[-1], *used))
  return Schedule(config_json, versions, digests, oldest[::-1], attempts)
