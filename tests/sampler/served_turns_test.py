"""A server that plays in environments: every turn continues what came before."""

import contextlib
import dataclasses

import numpy as np
import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.environments import episodes
from offpolicy_rl.model import families
from offpolicy_rl.roles import sampler
from offpolicy_rl.sampler import served
from tests.end_to_end_test import over_the_wire
from tests.model.families_test import LLAMA
from tests.roles.teacher_test import VOCAB, published
from tests.run_system import train_rows
from tests.sampler import engine_rewinds_test, engine_turns_test, served_test
from tests.sampler.served_test import CONFIG, WANTED, Stub, directory, stub, weights  # noqa: F401

TEMPERATURE = 0.7
GUESS = "offpolicy_rl.environments.guess"
RUN = {
  "task.name": f"{GUESS}:guess_the_number",
  "task.verifier": "",
  "task.chat": "False",
  "task.max_prompt_tokens": 24,
  "task.max_completion_tokens": 30,
  "environment.name": f"{GUESS}:GuessTheNumber",
  "environment.max_turns": 3,
  "environment.max_turn_tokens": 3,
  "environment.episodes": 24,
  "warm_start.steps": 0,
  "evaluation.every": 0,
  "learner.steps": 4,
  "learner.audit_every": 1,
  "lag.mode": "fixed",
  "lag.max_lag": 1,
}


def ticket(index: int, number: int = 3, environment: str = engine_turns_test.WORLD) -> types.Ticket:
  plain = served_test.ticket(index, number, TEMPERATURE)
  return dataclasses.replace(plain, environment=environment)


def plain_world(delay=lambda: 0) -> episodes.Episodes:
  made = engine_turns_test.Processes(delay)
  limits = engine_turns_test.LIMITS
  return episodes.Episodes(lambda: made, engine_turns_test.words, limits, seed=0)


def rewriting_world() -> episodes.Episodes:
  made = engine_rewinds_test.Agents(lambda: 0)
  words, history = engine_rewinds_test.Words(), engine_rewinds_test.History()
  limits = engine_rewinds_test.LIMITS
  return episodes.Episodes(lambda: made, lambda _: words, limits, 0, lambda _: history)


def play(server, tickets, world, **changes) -> dict[str, list[types.Trajectory]]:
  made = served_test.engine(server, episodes=world, **changes)
  made.add(tickets)
  return served_test.answers(made, weights(1), 3)


@pytest.mark.parametrize("world", [plain_world, rewriting_world])
def test_logprobs_are_those_of_what_a_turn_sees(stub, world):  # noqa: F811
  tickets = [ticket(i) for i in range(3)]
  found, turns, went_back = play(stub, tickets, world()), 0, 0
  for asked in tickets:
    assert len(found[asked.ticket_id]) == 3
    for trajectory in found[asked.ticket_id]:
      assert trajectory.ended and trajectory.sampled[-1]
      assert set(trajectory.versions) <= {3, types.NO_VERSION}
      for turn, seen in engine_rewinds_test.contexts(trajectory):
        context = np.array([*asked.prompt_tokens, *seen], np.int32)
        alone = dataclasses.replace(asked, prompt_tokens=context)
        expected = served.logprobs(CONFIG, weights(1), alone, trajectory.tokens[turn])
        np.testing.assert_allclose(trajectory.logprobs[turn], expected, atol=1e-4)
        turns += 1
      went_back += len(trajectory.rewinds)
  assert turns > 12 and bool(went_back) == (world is rewriting_world)


def test_episodes_do_not_depend_on_when_the_world_answers(stub):  # noqa: F811
  tickets = [ticket(i) for i in range(3)]
  waits = np.random.default_rng(0)
  late = plain_world(lambda: int(waits.integers(4)))
  one, other = play(stub, tickets, plain_world()), play(stub, tickets, late, most=9)
  assert one.keys() == other.keys()
  for name, group in one.items():
    for a, b in zip(group, other[name], strict=True):
      assert a.tokens.tolist() == b.tokens.tolist() and a.turn_rewards == b.turn_rewards
  sent = [body["seed"] for _, body in stub.requests if body.get("n") == 1]
  assert len(set(sent)) > 15, "each turn of each completion has a seed of its own"


def test_tickets_without_an_environment_have_one_turn(stub):  # noqa: F811
  found = play(stub, [ticket(0), ticket(1, environment="")], plain_world())
  assert all(not t.ended and t.sampled.all() for t in found["train/0/1"])
  assert all(t.ended and t.turn_rewards for t in found["train/0/0"])


def test_turns_keep_to_their_limits_and_record_candidates(stub):  # noqa: F811
  [group] = play(stub, [ticket(0)], plain_world(), wanted=WANTED._replace(candidates=2)).values()
  for t in group:
    assert t.tokens.size <= engine_turns_test.LIMITS.tokens
    assert t.candidates.tokens.shape == (t.tokens.size, 2)
    assert not t.candidates.logprobs[~t.sampled].any() and t.candidates.logprobs[t.sampled].all()
  asked = [body for _, body in stub.requests if body.get("n") == 1 and body["max_tokens"] <= 4]
  assert asked and all(body["logprobs"] == 2 for body in asked)


def test_weights_stay_until_the_last_episode_is_over(stub):  # noqa: F811
  made = served_test.engine(stub, episodes=plain_world(lambda: 2), most=6)
  made.add([ticket(0)])
  assert (made.room, made.busy, made.idle) == (3, 0, False)
  groups = made.step(weights(1), 1)
  made.add([ticket(1)])
  assert made.progress["train/0/0"] > made.progress["train/0/1"] == 0 and made.room == 0
  newer = weights(2)
  while not made.idle:
    groups += made.step(newer, 2)
  versions = {t.ticket_id: {v for x in g for v in x.versions[x.sampled]} for t, g in groups}
  assert versions == {"train/0/0": {1}, "train/0/1": {2}}
  assert made.pop_started("train/0/0") < made.pop_started("train/0/1")


@pytest.mark.long
def test_a_run_plays_through_a_server(tiny_config, tmp_path):
  """Learner, wire and sampler with a published model; the learner checks the log-probabilities."""
  model = published(tmp_path / "model")
  config_lib.override(tiny_config, [*RUN.items(), ("model.checkpoint", str(model))])
  with contextlib.closing(Stub(model, families.read(LLAMA | {"vocab_size": VOCAB}), 64)) as server:
    server.answer("/collective_rpc", {"method": "load_again"})
    vllm = sampler.Vllm(server.url, model, tolerance=1e-3)
    over_the_wire(tiny_config, tmp_path / "run", 1, vllm=vllm)
  rows = train_rows(tmp_path / "run")
  checked = [row["mismatch/max"] for row in rows if "mismatch/max" in row]
  assert len(rows) == 4 and checked and max(checked) < 1e-3
  assert all(row["episode/turns"] > 1 for row in rows)
