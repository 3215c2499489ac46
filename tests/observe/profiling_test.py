"""Traces hold the steps that were asked for, and a run that asks for none is left as it is."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.learner import loop
from offpolicy_rl.observe import profiling

_update = jax.jit(lambda x: x @ x / jnp.sum(x))


def functions(events: list) -> loop.Functions:
  """Of a loop that squares a matrix."""

  def update(step, state, batch):
    events.append(("update", step))
    return Params(_update(state.params)), {"loss": 1.0, "grad_norm": 1.0}

  return loop.Functions(
    next_batch=lambda step: loop.StepBatch(None, frozenset()),
    update=update,
    publish=lambda version, params: None,
    write=lambda step, row: None,
    after_step=lambda version, state: events.append(("after", version)),
  )


class Params:
  def __init__(self, params):
    self.params = params


def run(plan, folder, *, steps=8, stop_at=None):
  """-> (what the loop did, what was said)."""
  events, said = [], []
  plain = functions(events)
  with profiling.profiled(plain, plan, folder, said.append) as made:
    loop.run(Params(jnp.ones((64, 64))), made, first_step=0, num_steps=stop_at or steps)
  return events, said


def steps_of(folder) -> list[int]:
  """The steps that a trace has, in order."""
  [path] = folder.glob("profile/plugins/profile/*/*.xplane.pb")
  data = jax.profiler.ProfileData.from_file(str(path))
  found = [
    (event.start_ns, dict(event.stats)["step_num"])
    for plane in data.planes
    for line in plane.lines
    for event in line.events
    if event.name == profiling.STEP
  ]
  return [step for _, step in sorted(found)]


def test_a_trace_has_the_steps_and_what_they_ran(tmp_path):
  events, said = run(profiling.plan("2-5", None, 8), tmp_path)
  assert steps_of(tmp_path) == [2, 3, 4]
  [path] = tmp_path.glob("profile/plugins/profile/*/*.trace.json.gz")  # for ui.perfetto.dev
  with gzip.open(path) as file:
    told = json.load(file)["traceEvents"]
  assert sum(event.get("name") == profiling.STEP for event in told) == 3
  assert any("PjRt" in event.get("name", "") for event in told)
  assert events == [e for s in range(8) for e in (("update", s), ("after", s + 1))]
  assert said == [f"profile: {tmp_path / 'profile'}"]


def test_a_run_that_ends_early_leaves_what_it_traced(tmp_path):
  run(profiling.plan("2-7", None, 8), tmp_path, stop_at=4)
  assert steps_of(tmp_path) == [2, 3]
  run(profiling.plan("2-3", None, 8), tmp_path / "again")  # the profiler is free again
  assert steps_of(tmp_path / "again") == [2]


def test_what_memory_holds(tmp_path):
  _, said = run(profiling.plan(None, 3, 8), tmp_path)
  [path] = (tmp_path / "profile").iterdir()
  assert path.name == "memory-3.prof" and said == [f"profile: {path}"]
  assert b"space" in gzip.decompress(path.read_bytes())  # pprof's name of the unit's kind


def test_what_cannot_be_written_is_told_and_ends_no_run(tmp_path):
  (tmp_path / "profile").write_text("a file in the way")
  events, said = run(profiling.plan("2-3", 4, 8), tmp_path)
  assert len(events) == 16 and any("profile: not written: " in text for text in said)


def test_without_a_plan_nothing_is_touched(tmp_path):
  plain = functions([])
  with profiling.profiled(plain, profiling.plan(None, None, 8), tmp_path, print) as same:
    assert same is plain
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "text", ["", "5", "2:5", "-2-5", "2-5-7", "two-five", "5-5", "7-5", "0-5", "2-9", " 2-5"]
)
def test_bad_ranges_are_refused(text):
  with pytest.raises(config_lib.ConfigError, match="--profile: got .*learner.steps = 8"):
    profiling.plan(text, None, 8)


@pytest.mark.parametrize("version", [0, -1, 9])
def test_bad_versions_are_refused(version):
  with pytest.raises(config_lib.ConfigError, match=f"--profile_memory: got {version}, .* = 8"):
    profiling.plan(None, version, 8)


def test_a_resumed_run_does_what_it_still_can():
  said = []
  left = lambda plan, at: profiling.left(plan, at, said.append)
  both = profiling.plan("5-8", 4, 8)
  assert left(None, 100) is None and left(both, 3) == both and not said
  assert left(both, 4) == profiling.plan("5-8", None, 8)
  assert left(profiling.plan("2-5", 7, 8), 2) == profiling.plan(None, 7, 8)
  assert len(said) == 2 and "continues from version 2" in said[1]
  assert left(both, 5) is None
  assert left(profiling.plan("2-5", None, 8), 4) is None
