"""Traces of a few steps and profiles of device memory, for --profile and --profile_memory.

RUN/profile/ gets traces for TensorBoard's profile plugin and ui.perfetto.dev (.trace.json.gz), and
memory-VERSION.prof for `pprof`. Flags are checked before JAX is imported.
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Generator
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from offpolicy_rl import config as config_lib

FOLDER, STEP = "profile", "train"  # directory in RUN; name of the steps in a trace


class _LoopFunctions(Protocol):
  """The part of loop.Functions, which this folder does not know, that is profiled."""

  __dataclass_fields__: ClassVar[dict[str, Any]]

  @property
  def update(self) -> Callable: ...

  @property
  def after_step(self) -> Callable: ...


Functions = TypeVar("Functions", bound=_LoopFunctions)


class Plan(NamedTuple):
  """The steps to trace, and the version at which to profile memory."""

  traced: range  # of steps; empty = none
  memory_at: int | None  # version


def plan(trace: str | None, memory_at: int | None, num_steps: int) -> Plan | None:
  """Reads --profile=10-12 and --profile_memory=10; None without either.

  Raises:
    config.ConfigError: a run of `num_steps` steps can't do that.
  """
  if trace is None and memory_at is None:
    return None
  traced = range(0)
  if trace is not None:
    match = re.fullmatch(r"(\d+)-(\d+)", trace)
    traced = range(*map(int, match.groups())) if match else traced
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


def left(plan: Plan | None, first_step: int, say: Callable[[str], None]) -> Plan | None:
  """The part of a plan that is left for a run that continues from `first_step`.

  Missing parts are no error: scripts that resume a run pass the same flags again.
  """
  if plan is None:
    return None
  rest = Plan(
    plan.traced if plan.traced.start > first_step else range(0),  # the first update compiles
    plan.memory_at if (plan.memory_at or 0) > first_step else None,
  )
  if rest != plan:
    say(f"profile: the run continues from version {first_step}, too late for part of the profile")
  return rest if rest.traced or rest.memory_at is not None else None


@contextlib.contextmanager
def profiled(
  functions: Functions, plan: Plan | None, run_dir: pathlib.Path, say: Callable[[str], None]
) -> Generator[Functions]:
  """Yields the loop's functions (`loop.Functions`), with profiling around them if there is a plan.

  A trace starts after the update before it, so that no step's time includes starting the trace.
  """
  if plan is None:
    yield functions
    return
  traces = _Profiler(plan, run_dir / FOLDER, say)

  def update(step, state, batch):
    traces.begin_step(step)
    return functions.update(step, state, batch)

  def after_step(version, state):
    traces.end_step()
    functions.after_step(version, state)
    traces.at_version(version)

  try:
    yield dataclasses.replace(functions, update=update, after_step=after_step)
  finally:
    traces.end_step()
    traces.end_trace()


class _Profiler:
  """Drives JAX's profiler between steps; its failures are reported and do not end the run."""

  def __init__(self, plan: Plan, folder: pathlib.Path, say: Callable[[str], None]):
    self._plan, self._folder, self._say = plan, folder, say
    self._tracing, self._step = False, contextlib.ExitStack()

  def begin_step(self, step: int) -> None:
    """Annotates a step in the trace, if there is one."""
    if self._tracing:
      from jax import profiler

      self._step.enter_context(profiler.StepTraceAnnotation(STEP, step_num=step))

  def end_step(self) -> None:
    self._step.close()

  def at_version(self, version: int) -> None:
    traced = self._plan.traced
    if traced and version == traced.start:
      self._begin_trace()
    if traced and version == traced.stop:
      self.end_trace()
    if version == self._plan.memory_at:
      self._save_memory(self._folder / f"memory-{version}.prof")

  def _begin_trace(self) -> None:
    from jax import profiler

    options = profiler.ProfileOptions()
    options.python_tracer_level = 0  # traces of every Python call would hide the steps
    with self._report_errors():
      profiler.start_trace(self._folder, profiler_options=options)
      self._tracing = True

  def end_trace(self) -> None:
    """Writes the trace, if there is one."""
    if self._tracing:
      from jax import profiler

      self._tracing = False
      with self._report_errors():
        profiler.stop_trace()
        self._say(f"profile: {self._folder}")

  def _save_memory(self, path: pathlib.Path) -> None:
    from jax import profiler

    with self._report_errors():
      self._folder.mkdir(parents=True, exist_ok=True)
      profiler.save_device_memory_profile(str(path))
      self._say(f"profile: {path}")

  @contextlib.contextmanager
  def _report_errors(self) -> Generator[None]:
    try:
      yield
    except (OSError, RuntimeError) as error:
      self._say(f"profile: not written: {error}")
