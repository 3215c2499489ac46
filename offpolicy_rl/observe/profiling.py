"""Where a step's time and memory go: traces of a few steps, asked for on the command line.

RUN/profile/ then holds what TensorBoard (its profile plugin) and ui.perfetto.dev (the
.trace.json.gz) open, and memory-VERSION.prof for `pprof`. Checked before JAX is imported.
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from offpolicy_rl import config as config_lib

FOLDER, STEP = "profile", "train"  # in the run's directory; the steps' name in a trace


class Plan(NamedTuple):
  """What to look at; versions count updates."""

  traced: range  # the updates between two versions; empty = none
  memory_at: int | None  # version


def plan(trace: str | None, memory_at: int | None, num_steps: int) -> Plan | None:
  """--profile=10-12 and --profile_memory=10 -> a plan; None where nothing is asked for.

  Raises:
    config.ConfigError: not what a run of `num_steps` updates can do.
  """
  if trace is None and memory_at is None:
    return None
  traced = range(0)
  if trace is not None:
    found = re.fullmatch(r"(\d+)-(\d+)", trace)
    traced = range(*map(int, found.groups())) if found else traced
    if not traced or traced.start < 1 or traced.stop > num_steps:
      raise config_lib.ConfigError(
        f"--profile: got {trace!r}, expected START-END with 1 <= START < END <= learner.steps = "
        f"{num_steps}: the updates that make version END out of START (the first compiles)"
      )
  if memory_at is not None and not 1 <= memory_at <= num_steps:
    raise config_lib.ConfigError(
      f"--profile_memory: got {memory_at}, expected a version from 1 to learner.steps = {num_steps}"
    )
  return Plan(traced, memory_at)


def left(asked: Plan | None, first_step: int, say: Callable[[str], None]) -> Plan | None:
  """What a run that goes on from a version can still do; the update after it compiles.

  No error: who resumes, maybe by a script, gives the flags of the beginning again.
  """
  if asked is None:
    return None
  found = Plan(
    asked.traced if asked.traced.start > first_step else range(0),
    asked.memory_at if (asked.memory_at or 0) > first_step else None,
  )
  if found != asked:
    say(f"profile: the run goes on from version {first_step}, too late for some of what was asked")
  return found if found.traced or found.memory_at is not None else None


@contextlib.contextmanager
def profiled(functions, asked: Plan | None, run_dir: pathlib.Path, say: Callable[[str], None]):
  """The loop's functions (`loop.Functions`), changed to do what the plan asks for.

  A trace begins behind the update before it, so that no step's time holds what that costs.
  """
  if asked is None:
    yield functions
    return
  watching = _Profiler(asked, run_dir / FOLDER, say)

  def update(step, state, batch):
    watching.step_begins(step)
    return functions.update(step, state, batch)

  def after_step(version, state):
    watching.step_ends()
    functions.after_step(version, state)
    watching.version(version)

  try:
    yield dataclasses.replace(functions, update=update, after_step=after_step)
  finally:
    watching.step_ends()
    watching.end_trace()


class _Profiler:
  """JAX's profiler between two steps; what goes wrong with it is told and does not end a run."""

  def __init__(self, asked: Plan, folder: pathlib.Path, say: Callable[[str], None]):
    self._asked, self._folder, self._say = asked, folder, say
    self._tracing, self._annotation = False, None

  def step_begins(self, step: int) -> None:
    """Names a step in a trace that is being made."""
    if self._tracing:
      from jax import profiler

      self._annotation = profiler.StepTraceAnnotation(STEP, step_num=step)
      self._annotation.__enter__()

  def step_ends(self) -> None:
    """The step named last is over."""
    annotation, self._annotation = self._annotation, None
    if annotation is not None:
      annotation.__exit__(None, None, None)

  def version(self, version: int) -> None:
    """Does what was asked for once so many updates are made."""
    traced = self._asked.traced
    if traced and version == traced.start:
      self._begin_trace()
    if traced and version == traced.stop:
      self.end_trace()
    if version == self._asked.memory_at:
      self._save_memory(self._folder / f"memory-{version}.prof")

  def _begin_trace(self) -> None:
    from jax import profiler

    options = profiler.ProfileOptions()
    options.python_tracer_level = 0  # every Python call of every thread would hide the steps
    with self._telling():
      profiler.start_trace(self._folder, profiler_options=options)
      self._tracing = True

  def end_trace(self) -> None:
    """Writes the trace, if one is being made."""
    if not self._tracing:
      return
    from jax import profiler

    self._tracing = False
    with self._telling():
      profiler.stop_trace()
      self._say(f"profile: {self._folder}")

  def _save_memory(self, path: pathlib.Path) -> None:
    from jax import profiler

    with self._telling():
      self._folder.mkdir(parents=True, exist_ok=True)
      profiler.save_device_memory_profile(str(path))
      self._say(f"profile: {path}")

  @contextlib.contextmanager
  def _telling(self):
    try:
      yield
    except (OSError, RuntimeError) as error:
      self._say(f"profile: not written: {error}")
