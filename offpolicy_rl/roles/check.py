"""The command `check`: reads all prompts and reports problems with them."""

import dataclasses
import itertools
import textwrap
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl.environments import environment
from offpolicy_rl.roles import build, data, teacher
from offpolicy_rl.tasks import pool, scoring, verifiers

_WIDTH = 80  # columns
_MAX_ROWS = 10  # printed per kind
_LONGEST_NAME = 11  # that fits next to the numbers
_QUANTILES = {"min": 0.0, "50 %": 0.5, "90 %": 0.9, "99 %": 0.99, "max": 1.0}


def run(config: ConfigDict, say: Callable[[str], None] = print) -> None:
  """Reads every prompt of train and held-out, and prints a report.

  Raises:
    ConfigError: a run could not start.
  """
  try:
    environment.require_all(config_lib.environments(config))
    selection = config_lib.selection(config)
    if verifiers.NAMED["code"] in selection.verifiers:
      scoring.require(verifiers.NAMED["code"])
    policy = data.initial_policy(config)
    teacher.find(config, policy)
    for task in selection.tasks:
      task.check()
    selection = selection.expanded()
    # The report lists everything that is wrong; `data.require` below judges it.
    lenient = [dataclasses.replace(task, max_bad_rows=1.0) for task in selection.tasks]
    lenient = dataclasses.replace(selection, tasks=tuple(lenient))
    inspected = data.inspect(config, lenient, policy)
    for line in report(config, policy, inspected):
      say(line)
    selection.check()
    for task, split in itertools.product(selection.tasks, data.SPLITS):
      task.read(split)  # refuses too many unusable rows of slow tasks, too
  except (ValueError, pool.PoolError) as error:  # of the model's files, the problems, a verifier
    raise config_lib.ConfigError(str(error)) from None
  strict = {task.name: task for task in selection.tasks}
  data.require(config, [one._replace(task=strict[one.task.name]) for one in inspected])
  data.check_messages(config, policy)
  say("A run can start.")


def report(
  config: ConfigDict, policy: build.Policy, inspected: Sequence[data.Inspected]
) -> Iterator[str]:
  """Yields lines of at most 80 columns, except paths and reasons."""
  for task in dict.fromkeys(one.task.name for one in inspected):
    its = [one for one in inspected if one.task.name == task]
    yield from _task(task, its)
  yield ""
  yield from _lengths(config, inspected)
  yield ""
  name, size = data.largest_message(config, policy)
  message = f"largest message: {name}, {size / 2**20:.2g} of {config.transport.max_message_mb} MB"
  for note in (*build.sampling_notes(config, policy), message):
    yield from textwrap.wrap(note, _WIDTH, subsequent_indent="  ")
  for one in inspected:
    yield from _not_used(one)


def _task(name: str, splits: Sequence[data.Inspected]) -> Iterator[str]:
  task = splits[0].task
  judge = task.environment or task.verifier.removeprefix("offpolicy_rl.tasks.")
  yield f"task {name}, judged by {judge}"
  for one in splits:
    reading, made = one.reading, one.made
    counts = {
      "can't be used": len(reading.left_out) + len(made.left_out),
      "too long": len(made.too_long),
      "repeated": len(reading.repeated),
      "held out": reading.held_out,
    }
    rows = sum(counts.values()) + len(made.examples)
    first = "" if reading.rest is None else "the first "
    less = "".join(f", {count:,} {kind}" for kind, count in counts.items() if count)
    yield f"  {one.split:<8}{len(made.examples):>9,} prompts of {first}{rows:,} rows{less}"


def _lengths(config, inspected: Sequence[data.Inspected]) -> Iterator[str]:
  yield f"{'tokens':<28}" + "".join(f"{name:>8}" for name in _QUANTILES) + f"{'limit':>8}"
  for one in sorted(inspected, key=lambda one: one.task.name):
    name = one.split if len(inspected) == len(data.SPLITS) else f"{one.task.name}, {one.split}"
    label = f"  {name} "
    if len(name) > _LONGEST_NAME:
      yield label.rstrip()
      label = "    "
    lengths = [example.demonstration_tokens.size for example in one.made.examples]
    yield _row(f"{label}prompts", one.made.prompt_lengths, config.task.max_prompt_tokens)
    yield _row(f"{label}demonstrations", lengths, config.task.max_completion_tokens)


def _row(label: str, lengths: list[int], limit: int) -> str:
  cells = ["-"] * len(_QUANTILES)
  if lengths:
    values = np.quantile(lengths, list(_QUANTILES.values()), method="nearest")
    cells = [f"{value:,}" for value in values]
  return f"{label:<28}" + "".join(f"{cell:>8}" for cell in cells) + f"{limit:>8,}"


def _not_used(one: data.Inspected) -> Iterator[str]:
  others = sum("another" in row.why for row in one.reading.repeated)
  for title, rows in (
    ("can't be used", one.reading.left_out + one.made.left_out),
    ("with answers that the verifier can't read", one.unreadable),
    (f"repeated, {others:,} of them with another answer", one.reading.repeated),
    ("too long", one.made.too_long),
  ):
    if rows:
      yield ""
      yield f"{one.task.name}, {one.split}: {len(rows):,} {title}"
      yield from (f"  {row.where}: {row.why:.300}" for row in rows[:_MAX_ROWS])
      if len(rows) > _MAX_ROWS:
        yield f"  ... and {len(rows) - _MAX_ROWS:,} more"
