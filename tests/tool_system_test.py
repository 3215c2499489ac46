"""Models that call tools: chat template, schemas, parser, engine and loss in one.

The model is random but for what it likes to say: calls, good and bad ones, and digits. Its
tokenizer has a token for each, so that a turn is a few tokens that were really sampled.
"""

import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.environments import environment, episodes, tools
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.model import pretrained, sharding
from offpolicy_rl.replay import batching, packing
from offpolicy_rl.roles import build, data
from offpolicy_rl.tasks import tokenizer
from tests.agents_system_test import assert_same
from tests.conftest import ROOT
from tests.environments.harnesses import add
from tests.roles.teacher_test import published
from tests.run_system import kill_resume_replay, train_rows
from tests.tasks import small_tokenizers as small
from tests.tasks.published import template_of

WORLDS = "tests.environments.tool_worlds"
CALCULATOR = "offpolicy_rl.environments.calculator:Calculator"
DIGITS = list("12358")
VOCAB, GROUP = 304, 6
WHYS = ("7", "there is no tool 'add'", "a call has to be")  # what calls are answered
CHATML = ("<|im_end|>", "<|im_start|>")
LLAMA = ("<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
GEMMA = ("<end_of_turn>", "<bos>", "<start_of_turn>")
# format -> (environment, template, special tokens, calls: good, of an unknown tool, malformed)
FORMATS = {
  "hermes": (
    CALCULATOR,
    "qwen2.5",
    CHATML,
    '<tool_call>{"name": "calculate", "arguments": {"expression": "3 + 4"}}</tool_call>',
    '<tool_call>{"name": "add", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "calculate"}</tool_call>',
  ),
  "llama3": (
    f"{WORLDS}:Llama",
    "llama3",
    LLAMA,
    '{"name": "calculate", "parameters": {"expression": "3 + 4"}}',
    '{"name": "add", "parameters": {}}',
    '{"name": "calculate"}',
  ),
  "gemma": (
    f"{WORLDS}:Gemma",
    "gemma2",
    GEMMA,
    '```tool_code\ncalculate(expression="3 + 4")\n```',
    "[add()]",
    "```tool_code\ncalculate(3 + 4)\n```",
  ),
}
PLAYS = {
  "task.max_prompt_tokens": 900,
  "task.max_completion_tokens": 420,
  "environment.max_turns": 4,
  "environment.max_turn_tokens": 3,
  "environment.seconds": 120,
  "environment.processes": 1,
  "warm_start.steps": 0,
}


def load(folder: pathlib.Path) -> tuple:
  """(architecture, parameters) of a checkpoint, on one device."""
  opened = pretrained.Checkpoint(folder)
  shardings = policy_lib.param_shardings(sharding.make_mesh(), policy_lib.shapes(opened.config))
  return opened.config, opened.load(shardings)


def model(folder: pathlib.Path, template: str, special: Sequence[str], calls: Sequence[str]):
  """A checkpoint that likes to say calls and digits, and to end its turn behind one."""
  published(folder, special=special, vocab_size=VOCAB)
  marks = {text: i for i, text in enumerate(special, 1)}
  plain = {text: i for i, text in enumerate(calls, 1 + len(special))}
  inner = small.byte_level(marks, plain=plain)
  inner.save(str(folder / "tokenizer.json"))
  named = {"eos_token": special[0], "bos_token": special[1]}
  (folder / "tokenizer_config.json").write_text(json.dumps(named))
  (folder / "chat_template.jinja").write_text(template_of(template))
  architecture, params = load(folder)
  calls_at, digits_at = (np.array(x) for x in (list(plain.values()), ids(inner, DIGITS)))
  liked = np.concatenate([calls_at, digits_at])
  params["embedding"] = params["embedding"].at[:, 0].add(20.0).at[liked, 1].add(20.0)
  unembedding = params["unembedding"].at[0, liked].add(2.0).at[0, calls_at].add(0.2)
  params["unembedding"] = unembedding.at[1, marks[special[0]]].add(3.3)
  names = dict.fromkeys(pretrained.tensor_shapes(architecture), "float32")
  pretrained.save(folder, architecture, jax.device_get(params), names)
  return folder


def ids(inner, texts: Sequence[str]) -> list[int]:
  return [inner.token_to_id(text) for text in texts]


def configured(config, folder: pathlib.Path, name: str, task: str, **more: str):
  """The configuration of a run of that model in an environment, with its tools in it."""
  given = {"model.checkpoint": str(folder), "environment.name": name, "task.name": task}
  config_lib.override(config, [(key, str(x)) for key, x in (PLAYS | given | more).items()])
  config_lib.validate(config)
  build.fill_in(config, tokenizer.read_files(folder))
  return config


def played(config, number: int) -> list[tuple[types.Ticket, list[types.Trajectory]]]:
  """Groups for the first prompts, played in an engine."""
  policy = data.initial_policy(config)
  data.check_turns(config, policy)
  [(_, made)] = data.examples(config, config_lib.selection(config).expanded(), policy, "train")
  assert not made.too_long and not made.left_out
  name, size = config.environment.name, config.task.max_prompt_tokens
  tickets = [
    types.Ticket(f"t{i}", types.TRAIN, 0, i, x.prompt_tokens, x.answer, 0, 0, GROUP, 1.0, name)
    for i, x in enumerate(made.examples[:number])
  ]
  _, params = load(pathlib.Path(config.model.checkpoint))
  with build.engine_of(config, policy, group_size=GROUP, max_prompt_tokens=size) as engine:
    groups = engine.generate(params, 0, tickets)
  return list(zip(tickets, groups, strict=True))


def own_turns(t: types.Trajectory) -> list[list[int]]:
  """The policy's tokens, turn by turn: what an environment says is never empty here."""
  bounds = np.flatnonzero(np.diff(t.sampled.astype(int))) + 1
  spans = zip(np.split(t.tokens, bounds), np.split(t.sampled, bounds), strict=True)
  return [span.tolist() for span, by in spans if by[0]]


def told_again(words, ticket: types.Ticket, t: types.Trajectory) -> list[tuple[str, Turn]]:
  """What the policy said, and the environment answers to it, as it is called by hand."""
  world = environment.resolve(ticket.environment)()
  world.reset(ticket.answer, episodes.seed_of(0, ticket))
  said = [words.decode(turn) for turn in own_turns(t)]
  return [(text, world.step(text)) for text in said]


def conversation(question: list[dict], told: list[tuple[str, Turn]]) -> list[dict]:
  """All messages that were read or written: nobody reads the answer to the last turn."""
  messages = list(question)
  for n, (said, answer) in enumerate(told, start=1):
    messages.append({"role": "assistant", "content": said})
    if n < len(told):
      messages += [{"role": answer.role, "content": x} for x in (answer.text, *answer.more)]
  return messages


@pytest.fixture(scope="module", params=FORMATS)
def episodes_of(request, tmp_path_factory):
  """(format, configuration, groups) of the calculator."""
  pytest.importorskip("reasoning_gym")
  name, template, special, *calls = FORMATS[request.param]
  folder = model(tmp_path_factory.mktemp("tools") / "model", template, special, calls)
  short = json.dumps({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
  config = config_lib.load(str(ROOT / "configs" / "test.py"))
  config = configured(config, folder, name, "reasoning_gym:chain_sum", **{"task.options": short})
  return request.param, config, played(config, 20)


def test_an_episode_is_what_the_template_writes_of_its_conversation(episodes_of):
  """With its tools; a call that is wrong is answered, and what is answered is rewarded."""
  form, config, groups = episodes_of
  words = data.initial_policy(config).words(config.environment.name)
  seen, rewards = set(), set()
  for ticket, t in ((ticket, t) for ticket, group in groups for t in group):
    question = words.opening(json.loads(ticket.answer)["entry"]["question"])
    told = told_again(words, ticket, t)
    whole = words.chat(conversation(question, told), opened=False)
    read = words.decode_special([*ticket.prompt_tokens, *t.tokens])
    assert whole.startswith(read) and whole[len(read) :].strip() in ("", words.special[words.eos])
    assert t.turn_rewards == tuple(answer.reward for _, answer in told)
    assert t.reward == sum(t.turn_rewards)
    assert t.ended in (types.DONE, types.TURN_LIMIT)  # so none has failed
    assert [answer.done for _, answer in told] == [False] * (len(told) - 1) + [t.ended == "done"]
    seen |= {word for _, answer in told[:-1] for word in WHYS if word in answer.text}
    rewards.add(t.reward)
  assert seen == set(WHYS) and rewards == {0.0, 1.0}
  shown = words.decode_special(groups[0][0].prompt_tokens)
  assert ("Computes an arithmetic expression." in shown) == (
    form != "gemma"
  )  # its template shows none


def test_the_loss_is_over_what_the_policy_sampled_and_nothing_else(episodes_of):
  """And the learner, which reads whole episodes, gives it the probabilities it was sampled with."""
  _, config, groups = episodes_of
  sizes = config.task.max_prompt_tokens, config.task.max_completion_tokens
  finished = [
    types.FinishedGroup(ticket, types.Group(ticket.ticket_id, tuple(group)), 0)
    for ticket, group in groups[:2]
  ]
  batch = batching.make_batch(finished, packing.Limits(packing.PADDED, *sizes, sum(sizes)))
  batch = jax.tree.map(lambda x: x[0], batch)
  architecture, params = load(pathlib.Path(config.model.checkpoint))
  logprobs = policy_lib.token_stats(architecture, params, batch.rows, 1.0).logprobs
  found = np.asarray(logprobs).reshape(-1)[batch.places]
  read = [t for one in finished for t in one.group.trajectories]
  assert sum((~t.sampled).sum() for t in read) > 300
  for n, t in enumerate(read):
    size = t.tokens.size
    np.testing.assert_array_equal(batch.loss_mask[n, :size], t.sampled)
    assert not batch.loss_mask[n, size:].any() and t.sampled.any()
    np.testing.assert_allclose(found[n, :size][t.sampled], t.logprobs[t.sampled], atol=1e-4)


SUMS, AGENT = f"{WORLDS}:Sums", "tests.environments.openai_harnesses:with_sdk"
OWN = "tests.environments.harnesses:calls"
ADDS = [
  f'<tool_call>{{"name": "add", "arguments": {{"a": {a}, "b": {b}}}}}</tool_call>'
  for a, b in ((3, 4), (1, 1))
]


@pytest.fixture
def shown():
  """The tool of an agent of OpenAI's SDK, which makes its schema."""
  pytest.importorskip("openai", reason="OpenAI's client is missing: pip install openai")
  pytest.importorskip("agents", reason="OpenAI's SDK is missing: pip install openai-agents")
  from tests.environments import openai_harnesses

  asks = openai_harnesses.with_sdk()
  problem = {"messages": [{"role": "user", "content": "?"}], "answer": "7", "rewrites": False}
  found = json.loads(asks.reset(json.dumps(problem), 0).opening)["tools"]
  asks.close()
  assert found != [tools.describe(add)] and found[0]["function"]["name"] == "add"
  return {"environment.tools": json.dumps(found)}


def assert_plays_alike(folder: pathlib.Path, agent: str, **more: str) -> None:
  """The agent gives the bits of the equal environment."""
  found = []
  for name in (SUMS, agent):
    config = config_lib.load(str(ROOT / "configs" / "test.py"))
    groups = played(configured(config, folder, name, f"{WORLDS}:sums", **more), 8)
    found.append([t for _, group in groups for t in group])
  assert {t.ended for t in found[0]} == {types.DONE, types.TURN_LIMIT}
  assert {t.reward for t in found[0]} == {0.0, 1.0}
  assert sum(len(t.turn_rewards) for t in found[0]) > 1.5 * len(found[0])
  assert_same(*found)


def test_an_agent_with_a_tool_gives_the_bits_of_the_equal_environment(tmp_path):
  assert_plays_alike(model(tmp_path / "model", "qwen2.5", CHATML, ADDS), OWN)


@pytest.mark.long
def test_so_does_that_of_a_package(tmp_path, shown):
  assert_plays_alike(model(tmp_path / "model", "qwen2.5", CHATML, ADDS), AGENT, **shown)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_agent_of_a_package_is_trained_resumed_and_replayed_to_the_bit(tmp_path, shown):
  keys = PLAYS | shown
  keys |= {
    "model.checkpoint": model(tmp_path / "model", "qwen2.5", CHATML, ADDS),
    "environment.name": AGENT,
    "task.name": f"{WORLDS}:sums",
    "task.verifier": "",
    "task.max_prompt_tokens": 600,
    "task.max_completion_tokens": 200,
    "learner.layout": "shared",
    "learner.prompts_per_step": 3,
    "learner.steps": 8,
    "checkpoint.every": 3,
    "evaluation.every": 4,
  }
  settings = [f"--config.{key}={value}" for key, value in keys.items()]
  gone = "--config.environment.name=nowhere:Gone"
  _, expected = kill_resume_replay(tmp_path, settings, {2: "s", 5: "b"}, gone)
  rows = train_rows(expected)  # sampler and learner agree on what was read
  assert max(row.get("mismatch/max", 0.0) for row in rows) <= 1e-4
  assert sum(row.get("mismatch/tokens", 0) for row in rows) > 0
  assert len({row["reward"] for row in rows}) > 1
