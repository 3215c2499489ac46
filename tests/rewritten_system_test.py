"""Agents that change their conversations, in a published chat template: from turn to whole runs."""

import json
import pathlib

import jax
import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.environments import agents, episodes
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.replay import replies
from offpolicy_rl.roles import build, data
from offpolicy_rl.tasks import tokenizer
from tests.agents_system_test import fond_of
from tests.environments import harnesses
from tests.roles.teacher_test import published
from tests.run_system import kill_resume_replay, train_rows
from tests.sampler.engine_rewinds_test import contexts
from tests.tasks.published import template_of
from tests.turns_system_test import GUESS

AGENT = "tests.environments.harnesses:compacts"
SETTINGS = [
  f"--config.task.name={GUESS}:guess_the_number",
  f"--config.environment.name={AGENT}",
  "--config.environment.history=rewrite",
  "--config.environment.max_turns=5",
  "--config.environment.max_turn_tokens=2",
  "--config.task.max_prompt_tokens=64",
  "--config.task.max_completion_tokens=104",
  "--config.task.verifier=",
  "--config.learner.layout=shared",
  "--config.warm_start.steps=0",
]


@pytest.fixture
def settings(tmp_path):
  """Of a small checkpoint with a template as Qwen2.5's."""
  special = ("<|im_end|>", "<|im_start|>")
  model = published(tmp_path / "model", special=special)
  (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
  (model / "chat_template.jinja").write_text(template_of("qwen2.5"))
  return [*SETTINGS, f"--config.model.checkpoint={model}"]


@pytest.fixture
def chats(tiny_config, settings):
  """The configuration of such a run."""
  assignments = [x.removeprefix("--config.").split("=", 1) for x in settings]
  config_lib.override(tiny_config, [tuple(x) for x in assignments])
  config_lib.validate(tiny_config)
  return tiny_config


def policy_of(config) -> build.Policy:
  files = tokenizer.read_files(pathlib.Path(config.model.checkpoint))
  build.fill_in(config, files)
  return build.make_policy(config, files)


def played_in_chat(config, name: str) -> list[tuple[types.Ticket, types.Trajectory]]:
  """Episodes of a model that says digits, with their tickets."""
  config.environment.name = name
  policy = policy_of(config)
  [(_, made)] = data.examples(config, config_lib.selection(config).expanded(), policy, "train")
  tickets = [
    types.Ticket(f"t{i}", types.TRAIN, 0, i, x.prompt_tokens, x.answer, 0, 0, 4, 1.0, name)
    for i, x in enumerate(made.examples[:12])
  ]
  params, eos = policy_lib.init(policy.model, jax.random.key(0)), policy.tokenizer.eos
  params = fond_of(params, policy.tokenizer)
  params["unembedding"] = params["unembedding"].at[0, eos].add(-0.25)
  with build.engine_of(config, policy, group_size=4, max_prompt_tokens=64) as engine:
    groups = engine.generate(params, 0, tickets)
  return [(t, trajectory) for t, group in zip(tickets, groups, strict=True) for trajectory in group]


def test_every_turn_reads_what_the_template_writes_of_its_request(chats):
  """And the harness hears what was sampled: it is run again on that."""
  found, went_back = played_in_chat(chats, AGENT), 0
  words = policy_of(chats).tokenizer
  assert {t.ended for _, t in found} == {types.DONE, types.TURN_LIMIT, types.TOKEN_LIMIT}
  for ticket, t in found:
    given = json.loads(ticket.answer)
    problem = agents.Problem(tuple(given["messages"]), given["answer"])
    turns = iter(contexts(t))

    def answer(messages, ticket=ticket, t=t, turns=turns):
      turn, seen = next(turns)
      assert words.decode_special([*ticket.prompt_tokens, *seen]) == words.chat(messages)
      return words.decode(t.tokens[turn].tolist())

    if t.ended == types.DONE:
      assert harnesses.forgets(answer, problem, episodes.seed_of(0, ticket)) == t.reward
    else:  # it asks once more than it is answered
      with pytest.raises(StopIteration):
        harnesses.forgets(answer, problem, episodes.seed_of(0, ticket))
    assert next(turns, None) is None
    went_back += len(t.rewinds)
  assert went_back > 20


@pytest.mark.long
@pytest.mark.timeout(900)
def test_runs_are_resumed_and_replayed_without_the_agent_to_the_bit(tmp_path, settings):
  short = [*settings, "--config.learner.steps=12", "--config.checkpoint.every=5"]
  gone = "--config.environment.name=nowhere:Gone"
  found, expected = kill_resume_replay(tmp_path, short, {3: "s", 7: "b"}, gone)
  said = (found / replies.FILE).read_text().splitlines()
  told = [e for line in said for e in json.loads(line)["episodes"]]
  assert sum(len(e.get("rewinds", ())) for e in told) > 100
  checked = train_rows(expected)  # sampler and learner agree on what was read
  assert max(row.get("mismatch/max", 0.0) for row in checked) <= 1e-4
  assert sum(row.get("mismatch/tokens", 0) for row in checked) > 0
