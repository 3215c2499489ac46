"""Mixtures of tasks that a verifier judges and of tasks that are played in an environment."""

import json
import multiprocessing

import jax
import numpy as np
import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.cli import main
from offpolicy_rl.environments import guess
from offpolicy_rl.evaluation import requests
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.observe import metrics
from offpolicy_rl.replay import replies
from offpolicy_rl.roles import build, data, prompts
from tests.agents_system_test import assert_same, fond_of
from tests.end_to_end_test import over_the_wire, small
from tests.run_system import kill_resume_replay, run_through, schedule_of, train_rows

GAME = f"{guess.__name__}:guess_the_number"
WORLD = f"{guess.__name__}:GuessTheNumber"


def mixture(world: str = WORLD) -> str:
  return json.dumps({"sums": 0.5, GAME: {"rate": 0.5, "environment": world}})


SETTINGS = [
  "--config.task.name=mixture",
  f"--config.task.mixture={mixture()}",
  "--config.environment.max_turns=3",
  "--config.environment.max_turn_tokens=1",
  "--config.task.max_prompt_tokens=5",
  "--config.task.max_completion_tokens=9",
  "--config.warm_start.steps=0",
  "--config.sampler.decode_steps=1",
]


@pytest.fixture
def mixed(tiny_config):
  assignments = [setting.removeprefix("--config.").split("=", 1) for setting in SETTINGS]
  config_lib.override(tiny_config, [tuple(x) for x in assignments])
  tiny_config.model.tied_embeddings = False
  return tiny_config


def answered(config) -> tuple[list[types.Ticket], list[types.Group]]:
  """Scored groups of a fresh model that says digits."""
  config_lib.validate(config)
  policy = build.make_policy(config, None)
  members = data.examples(config, config_lib.selection(config).expanded(), policy, "train")
  examples = [example for _, made in members for example in made.examples[:6]]
  tickets = requests.tickets(examples, name="x", version=0, step=0, num_samples=4, temperature=1.0)
  params = fond_of(policy_lib.init(policy.model, jax.random.key(0)), policy.tokenizer)
  made = build.engine_of(config, policy, group_size=4, max_prompt_tokens=8)
  with made as engine, build.scoring_of(config, policy) as score:
    return tickets, score(tickets, engine.generate(params, 0, tickets))


def test_each_member_is_answered_and_judged_in_its_own_way(mixed):
  """Those of one turn to the bit as if nobody played."""
  tickets, groups = answered(mixed)
  mixed.environment.name = "none"
  plain, alone = answered(mixed)
  assert [t.environment for t in tickets] == [""] * 12 + [WORLD] * 12
  assert [t.environment for t in plain] == [""] * 24
  for group, expected in zip(groups[:12], alone[:12], strict=True):
    assert_same(expected.trajectories, group.trajectories)
    assert not any(t.ended for t in group.trajectories) and group.verifier_failures == 0
  played = [t for group in groups[12:] for t in group.trajectories]
  assert all(t.ended for t in played) and any((~t.sampled).any() for t in played)
  assert {t.reward for t in played} == {0.0, 1.0}
  assert not any(t.ended for group in alone for t in group.trajectories)


def test_processes_of_environments_end_with_their_engine(mixed):
  """A replay begins with none."""
  policy, before = build.make_policy(mixed, None), set(multiprocessing.active_children())
  started = lambda: len(set(multiprocessing.active_children()) - before)
  for mode, number in (("async", mixed.environment.processes), ("replay", 0)):
    mixed.lag.mode = mode
    with build.engine_of(mixed, policy, group_size=4, max_prompt_tokens=8):
      assert started() == number
    assert started() == 0


@pytest.mark.parametrize(
  ("world", "message"),
  [
    ("nowhere:Game", "expected an importable module:class: "),
    (f"{guess.__name__}:Turn", "expected a class decorated with @environment.environment"),
  ],
)
def test_a_wrong_name_is_an_error_before_anything_starts(world, message, tmp_path, capsys):
  settings = [*SETTINGS[:1], f"--config.task.mixture={mixture(world)}", *SETTINGS[2:]]
  arguments = ["--config=configs/test.py", *settings]
  for command in (["local", f"--run_dir={tmp_path / 'run'}"], ["check"]):
    assert main.main([*command, *arguments]) == 2
    said = capsys.readouterr().err
    assert f"task.mixture: {GAME}: environment: got '{world}', {message}" in said
  assert not (tmp_path / "run").exists()


def test_a_run_says_how_well_it_does_at_each_member(mixed, tmp_path):
  config = small(mixed, learner__steps=3, lag__mode="fixed", lag__max_lag=1)
  config.evaluation.problems = 27  # 8 of sums
  over_the_wire(config, tmp_path / "run", samplers=1)
  rows = [row for row in metrics.read(tmp_path / "run") if row["kind"] == metrics.HELDOUT]
  assert [metrics.of_tasks(row).keys() for row in rows] == [{"sums", GAME}] * 2
  assert all(0 < row["episode/turns"] <= 3 for row in train_rows(tmp_path / "run"))
  lines = metrics.read_lines(tmp_path / "run" / replies.FILE)
  played = [row["ticket"] for row in lines]
  assert 0 < sum(name.startswith("train/") for name in played) < 3 * 8
  assert sum(name.startswith("eval/") for name in played) == 2 * 2 * 19
  asked = ["eval", f"--run_dir={tmp_path / 'run'}", f"--out={tmp_path / 'eval'}", "--k=2"]
  assert main.main([*asked, "--config.sampler.temperature=0.9"]) == 0
  found = json.loads((tmp_path / "eval" / "eval.json").read_text())
  names = {task: [row["name"] for row in rows] for task, rows in found["tasks"].items()}
  assert names == {"sums": ["greedy", "pass@2", "maj@2"], GAME: ["greedy", "pass@2"]}


def test_a_warm_start_has_the_demonstrations_that_there_are(mixed):
  """Else half of them would teach to say nothing; games have none."""
  policy = build.make_policy(mixed, None)
  read = prompts.read(mixed, policy)
  batch, _ = prompts.demonstrations(mixed, read.train)
  asked = policy.tokenizer.decode_all(np.ravel(batch(0).rows.tokens).tolist())
  assert asked.count("+") == mixed.warm_start.rows and ":" not in asked
  games = [member for member in read.train if member[1][0].task == GAME]
  with pytest.raises(
    config_lib.ConfigError, match="warm_start.steps: got .*, expected 0: no problem"
  ):
    prompts.demonstrations(mixed, games)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_mixture_survives_kills_and_is_replayed_without_its_environment_to_the_bit(tmp_path):
  gone = f"--config.task.mixture={mixture('nowhere:Gone')}"  # it was recorded
  _, expected = kill_resume_replay(tmp_path, SETTINGS, {7: "l", 14: "s", 23: "b"}, gone)
  # Until the weights differ, the member of one turn has the bits of a run in which nobody plays.
  fixed = ("--config.lag.mode=fixed", "--config.lag.max_lag=3")
  run_through(tmp_path / "plain", *SETTINGS, *fixed, "--config.environment.name=none")
  same = [
    a == b
    for (one, _), (other, _) in zip(
      schedule_of(expected)[:4], schedule_of(tmp_path / "plain")[:4], strict=True
    )
    for a, b in zip(one, other, strict=True)
  ]
  assert 8 < sum(same) < 24
