"""The lag schedule of a run: which version sampled which group of which step.

Every run writes it, one JSON line per step, so that an async run can be done again to the bit
(`--replay=FILE`). The first line holds the run's configuration.
"""

import hashlib
import json
import pathlib
from typing import NamedTuple

import numpy as np

from offpolicy_rl import types

FILE = "lag_schedule.jsonl"


class ScheduleError(ValueError):
  """A file that no run can follow; names the line and what was expected."""


class Schedule(NamedTuple):
  """A recorded run."""

  config_json: str
  versions: list[list[int]]  # [step][group], the version that sampled it
  digests: list[list[str]]  # [step][group], of the group's content
  oldest: list[int]  # [step + 1], oldest version that this step or a later one needs


def digest(group: types.Group) -> str:
  """Short fingerprint of tokens, logprobs, versions and rewards of all completions."""
  found = hashlib.blake2b(digest_size=8)
  for t in group.trajectories:
    for array in (t.tokens, t.logprobs, t.versions, np.float32(t.reward)):
      found.update(np.ascontiguousarray(array).tobytes())
  return found.hexdigest()


def row(step: int, groups: list[types.FinishedGroup]) -> dict:
  """What a step consumed, for the file; a group of several versions has a list of them."""
  versions = []
  for finished in groups:
    used = np.unique(np.concatenate([t.versions for t in finished.group.trajectories])).tolist()
    versions.append(used[0] if len(used) == 1 else used)
  return {
    "step": step,
    "versions": versions,
    "arrivals": [finished.arrival_version for finished in groups],
    "digests": [digest(finished.group) for finished in groups],
  }


def read(path: pathlib.Path) -> Schedule:
  """Reads a recorded schedule.

  Raises:
    ScheduleError: no such file, a damaged line, or a group that several versions sampled.
  """
  if not path.is_file():
    raise ScheduleError(f"--replay: no file {path}, expected the {FILE} of a run")
  lines = path.read_text().splitlines()
  try:
    header, *rows = [json.loads(line) for line in lines]
    config_json = json.dumps(header["config"])
    versions = [r["versions"] for r in rows]
    digests = [r["digests"] for r in rows]
    steps = [r["step"] for r in rows]
  except (ValueError, KeyError, TypeError) as error:
    raise ScheduleError(f"--replay: {path} is no lag schedule: {error!r}") from None
  if steps != list(range(len(rows))):
    raise ScheduleError(f"--replay: {path}: got steps {steps[:5]}..., expected 0, 1, 2, ...")
  for step, (used, known) in enumerate(zip(versions, digests, strict=True)):
    if not (isinstance(used, list) and isinstance(known, list) and 0 < len(used) == len(known)):
      raise ScheduleError(
        f"--replay: {path}: step {step}: got versions {used!r} and digests {known!r}, expected a "
        "list of each, one entry per group"
      )
    for group, version in enumerate(used):
      if not isinstance(version, int) or not 0 <= version <= step:
        raise ScheduleError(
          f"--replay: {path}: step {step}, group {group}: got version {version!r}, expected one "
          f"version in [0, {step}]"
        )
  oldest = [len(versions)]
  for used in reversed(versions):
    oldest.append(min(oldest[-1], *used))
  return Schedule(config_json, versions, digests, oldest[::-1])
