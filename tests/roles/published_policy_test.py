"""From a configuration and a published model's files to its policy: prompts, ends, the day."""

import datetime
import json

import pytest

from configs import base
from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.roles import build, data
from offpolicy_rl.tasks import prompts, sources, tokenizer
from tests.conftest import ROOT
from tests.model.families_test import LLAMA
from tests.tasks import small_tokenizers as small
from tests.thoughts_system_test import TEMPLATE

GUESS = "offpolicy_rl.environments.guess"
TEMPLATES = ROOT / "tests" / "data" / "chat_templates"
SPECIAL = {"<eos>": 1, "<|begin_of_text|>": 2, "<end_of_turn>": 5, "<start_of_turn>": 6}


def template(name: str) -> str:
  return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def files(**more) -> types.ModelFiles:
  """Of a model whose turns end with another token than its texts."""
  settings = {"eos_token": "<eos>", "bos_token": "<|begin_of_text|>"}
  given = {
    "config": json.dumps(LLAMA | {"vocab_size": 272, "eos_token_id": [1, 5]}),
    "tokenizer": small.byte_level(SPECIAL).to_str(),
    "tokenizer_config": json.dumps(settings),
    "chat_template": template("gemma2"),
  }
  return types.ModelFiles(**given | more)


@pytest.fixture
def config():
  """Of a published model, as its card would say."""
  found = base.get_config()
  found.model.checkpoint = "somewhere"
  found.task.max_completion_tokens = 40
  return found


def test_every_end_reaches_the_engine_the_texts_and_the_people(config):
  config.sampler.stop = '["<start_of_turn>", "####"]'
  generation = json.dumps({"eos_token_id": [1, 5], "temperature": 0.6, "do_sample": True})
  policy = build.make_policy(config, files(generation_config=generation))
  stops = build.stops(policy)
  assert (stops.tokens, stops.texts) == ((1, 5, 6), ("####",))
  words = policy.tokenizer
  tokens = words.encode("5 #### 6")
  assert stops.length(tokens, 0) == 6 and words.decode(tokens) == "5 "
  assert words.decode(words.encode("7<end_of_turn>\nuser")) == "7"
  assert build.sampling_notes(config, policy) == [
    "a completion ends with '<eos>' (1), '<end_of_turn>' (5), '<start_of_turn>' (6), the text "
    "'####', or after 40 tokens",
    "generation_config.json: temperature = 0.6: not followed, sampler.* say how to sample",
  ]


def test_a_run_says_that_nothing_ends_the_turns_of_its_template(config):
  ending = "{% for m in messages %}{{ m.content }}<start_of_turn>{% endfor %}"
  policy = build.make_policy(config, files(chat_template=ending))
  assert build.sampling_notes(config, policy)[1].startswith(
    "the chat template ends a turn with '<start_of_turn>', but no file says"
  )
  config.sampler.stop = '["<start_of_turn>"]'
  policy = build.make_policy(config, files(chat_template=ending))
  assert not any("ends a turn" in note for note in build.sampling_notes(config, policy))


def test_a_run_says_that_its_template_does_not_show_the_tools_of_an_environment(config):
  config.task.name = "chain_sum"
  config.environment.name = "offpolicy_rl.environments.calculator:Calculator"
  mute = "{% for m in messages %}{{ m.content }}<end_of_turn>{% endfor %}"
  note = "the chat template does not show tools: describe them in task.system_prompt"
  for template, expected in ((mute, [note]), ("{{ tools }}" + mute, [])):
    shown = files(chat_template=template)
    build.fill_in(config, shown)
    notes = build.sampling_notes(config, build.make_policy(config, shown))
    assert [line for line in notes if "tools" in line] == expected


def test_a_fresh_model_ends_with_its_own_token(tiny_config):
  tiny_config.sampler.stop = '["=="]'
  policy = build.make_policy(tiny_config, None)
  [note] = build.sampling_notes(tiny_config, policy)
  assert note.startswith("a completion ends with '<eos>' (1), the text '==', or after")
  assert build.stops(policy).tokens == (1,)


@pytest.mark.parametrize(("chat", "end"), [(True, 5), (False, 1)])
def test_demonstrations_end_as_the_model_ends_its_turn(config, chat, end):
  config.task.chat = chat
  words = build.make_policy(config, files()).tokenizer
  problem = sources.Problem("1+1?", '"2"', "2")
  [example] = prompts.tokenize([problem], prompts.Rendering(words, 100)).examples
  assert example.demonstration_tokens.tolist() == [*words.encode("2"), end]


def test_the_configuration_says_what_a_template_is_told(config):
  config.task.system_prompt = "Be brief."
  config.task.chat_arguments = '{"enable_thinking": false}'
  words = build.make_policy(config, files(chat_template=template("qwen3"))).tokenizer
  assert words.decode_special(words.prompt("1+1?")) == (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
  )


def test_prompts_of_a_run_are_those_of_its_first_day(config):
  dated = files(chat_template=template("llama3"))
  config.task.chat_date = "2003-02-01"
  build.fill_in(config, dated)  # is fixed already
  words = build.make_policy(config, dated).tokenizer
  assert "Today is 01 Feb 2003." in words.decode_special(words.prompt("1+1?"))
  config.task.chat_date = ""
  build.fill_in(config, files())  # takes no interest in it
  assert config.task.chat_date == ""
  before = datetime.date.today()
  build.fill_in(config, dated)
  assert config.task.chat_date in (before.isoformat(), datetime.date.today().isoformat())
  config.task.chat_date, config.task.chat = "", False
  build.fill_in(config, dated)
  assert config.task.chat_date == ""


def test_tools_of_a_run_are_those_of_its_beginning(config):
  config.environment.name = "offpolicy_rl.environments.calculator:Calculator"
  shown = files(chat_template="{{ tools[0].function.name }} {{ messages[0].content }}")
  build.fill_in(config, shown)
  assert json.loads(config.environment.tools)[0]["function"]["name"] == "calculate"
  config.environment.name = "nowhere:Gone"
  build.fill_in(config, shown)
  words = build.make_policy(config, shown).tokenizer
  assert words.decode_special(words.prompt("1+1?")) == "calculate 1+1?"


def prompt(config, policy, name: str) -> str:
  """That of a question of a member."""
  [task] = [task for task in config_lib.selection(config).tasks if task.name == name]
  problem = sources.Problem("1+1?", '"2"', "2")
  [example] = prompts.tokenize([problem], data.rendering(config, policy, task)).examples
  assert (example.task, example.environment) == (name, task.environment)
  return policy.tokenizer.decode_special(example.prompt_tokens)


def test_each_member_of_a_mixture_is_shown_the_tools_of_its_own_environment(config):
  """From the prompts to what follows a turn; those that a resumed run finds recorded stay."""
  calculator, plain = "offpolicy_rl.environments.calculator:Calculator", f"{GUESS}:GuessTheNumber"
  members = {"sums": {"environment": calculator}, "chain_sum": {"environment": plain}}
  members |= {"gsm8k": {}, "textarena:Hangman-v0": {"environment": "gone:Game"}}
  config.task.name, config.task.max_prompt_tokens = "mixture", 64
  config.task.mixture = json.dumps({k: v | {"rate": 1} for k, v in members.items()})
  shown = files(
    chat_template="{{ tools | map(attribute='function.name') | join }}|"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
  )
  with pytest.raises(ValueError, match="task.mixture: textarena:Hangman-v0: environment: got"):
    build.fill_in(config, shown)
  config.environment.tools = json.dumps({"gone:Game": [{"function": {"name": "recorded"}}]})
  build.fill_in(config, shown)
  recorded = json.loads(config.environment.tools)
  assert {name: len(schemas) for name, schemas in recorded.items()} == {
    "gone:Game": 1,
    calculator: 1,
    plain: 0,
  }
  policy = build.make_policy(config, shown)
  shows = [prompt(config, policy, name) for name in ("sums", "chain_sum", "gsm8k")]
  assert shows == ["calculate|1+1?", "|1+1?", "|1+1?"]
  assert policy.words("gone:Game").decode_special(policy.words("gone:Game").prompt("?")) == (
    "recorded|?"
  )
  config.environment.name = "none"  # as `serve` has it: nobody plays, so nobody has tools
  assert build.make_policy(config, shown).with_tools == {}


def test_of_a_mixture_only_prompts_of_episodes_lack_the_beginning_of_an_answer(config):
  """Episodes begin with it, as other messages may follow a prompt."""
  config.task.name, config.task.max_prompt_tokens = "mixture", 64
  played = {"rate": 1, "environment": f"{GUESS}:GuessTheNumber"}
  config.task.mixture = json.dumps({"sums": 1, "chain_sum": played})
  config.environment.history = "rewrite"
  config_lib.validate(config)
  policy = build.make_policy(config, files(chat_template=TEMPLATE))
  assert prompt(config, policy, "sums") == "u:1+1?a:<think>"
  assert prompt(config, policy, "chain_sum") == "u:1+1?"


def test_a_template_that_can_not_say_what_an_environment_does_is_refused_by_name(config):
  """Without the name, an environment that nobody plays, as in a replay, has no role but user."""
  calculator = "offpolicy_rl.environments.calculator"
  config.task.name = "chain_sum"
  for name in (f"{calculator}:PlainCalculator", "gone:Gone"):
    config.environment.name = name
    data.check_turns(config, build.make_policy(config, files()))
  config.environment.name = f"{calculator}:Calculator"
  expected = "environment.name: .*:Calculator: chat template: .* messages of role 'tool' .* turns"
  with pytest.raises(tokenizer.TokenizerError, match=expected):
    data.check_turns(config, build.make_policy(config, files()))
