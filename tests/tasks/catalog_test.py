"""What a configuration's task section asks for: names, verifiers, mixtures."""

import json

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.tasks import catalog, scoring, verifiers
from tests.tasks.sources_test import WORDS, settings, write

MIXTURE = json.dumps(
  {
    "gsm8k": {"rate": 3, "data_dir": str(WORDS)},
    "sums": 1,
    "reasoning_gym:gcd": {"rate": 1, "size": 50, "options": '{"max_value": 20}'},
  }
)


def test_members_of_a_mixture_have_rates_keys_and_verifiers_of_their_own(tiny_config):
  asked = catalog.select(settings(tiny_config, name="mixture", mixture=MIXTURE))
  asked.check()
  assert [task.name for task in asked.tasks] == ["gsm8k", "sums", "reasoning_gym:gcd"]
  assert asked.rates == (0.6, 0.2, 0.2)
  words, sums, gcd = asked.split("train")
  assert len(words) == 16 and len(sums) + len(asked.split("heldout")[1]) == 100
  assert 35 <= len(gcd) <= 50
  scoring.allow(asked.verifiers)
  for problem in words + sums + gcd:
    assert verifiers.mixture(problem.demonstration, problem.answer) == 1.0
    assert verifiers.mixture("-1", problem.answer) == 0.0
  assert asked.verifier == verifiers.MIXTURE
  assert set(asked.verifiers) == {verifiers.NAMED[x] for x in ("numeric", "exact", "reasoning_gym")}


def test_a_member_is_played_in_the_environment_that_it_names(tiny_config):
  """Its problems keep their answer data, and its verifier is not asked for."""
  members = {"sums": {"rate": 1, "environment": "my:World"}, "gsm8k": {"rate": 1, "data_dir": "d"}}
  members["textarena:2048-v0"] = {"rate": 1, "environment": "none"}
  members["textarena:Hangman-v0"] = 1
  asked = catalog.select(settings(tiny_config, name="mixture", mixture=json.dumps(members)))
  played = [task.environment for task in asked.tasks]
  assert played == ["my:World", "", "", "offpolicy_rl.environments.textarena:Game"]
  assert [task.name for task in asked.judged] == ["gsm8k", "textarena:2048-v0"]
  assert asked.verifiers == (verifiers.NAMED["numeric"], verifiers.NAMED["exact"])
  members = {"sums": members["sums"], "chain_sum": 1}
  asked = catalog.select(settings(tiny_config, name="mixture", mixture=json.dumps(members)))
  sums, chain = asked.split("train")
  assert all(json.loads(problem.answer).isdecimal() for problem in sums)
  assert all(json.loads(problem.answer)["verifier"] for problem in chain)
  alone = asked.played_in("")
  assert [task.environment for task in alone.tasks] == ["", ""]
  assert all(json.loads(problem.answer)["verifier"] for problem in alone.split("train")[0])


def test_what_one_member_holds_out_no_other_trains_on(tiny_config, tmp_path):
  rows = [{"question": f"q{i}", "answer": "1"} for i in range(50)]
  whole, held = write(tmp_path / "a.jsonl", *rows), write(tmp_path / "b.jsonl", *rows[:5])
  mixture = {
    "jsonl:a": {"rate": 1, "train_file": whole},
    "jsonl:b": {"rate": 1, "train_file": whole, "heldout_file": held, "max_bad_rows": 0},
  }
  asked = catalog.select(settings(tiny_config, name="mixture", mixture=json.dumps(mixture)))
  train, heldout = asked.split("train"), asked.split("heldout")
  held = {p.question for problems in heldout for p in problems}
  assert held >= {f"q{i}" for i in range(5)} and len(held) > 5
  assert not held & {p.question for problems in train for p in problems}


def test_a_fresh_models_vocabulary_has_the_phrases_of_every_member(tiny_config):
  mixture = '{"chain_sum": 1, "spell_backward": 1}'
  asked = catalog.select(settings(tiny_config, name="mixture", mixture=mixture))
  single = [catalog.TASKS[name] for name in ("chain_sum", "spell_backward")]
  for phrase in single[0].phrases + single[1].phrases:
    assert len(asked.vocabulary.encode(phrase)) == 1
  alone = catalog.select(settings(tiny_config, name="chain_sum", mixture=""))
  assert alone.vocabulary.fingerprint == single[0].vocabulary.fingerprint


@pytest.mark.parametrize("verifier", ["numeric", "math_verify", "exact", "my.module:judge"])
def test_the_verifier_can_be_chosen(tiny_config, verifier):
  asked = catalog.select(settings(tiny_config, name="chain_sum", verifier=verifier))
  assert asked.verifier == verifiers.NAMED.get(verifier, verifier)
  if verifier in verifiers.NAMED:  # they understand the answers of any task
    problem = asked.split("heldout")[0][0]
    assert scoring.resolve(asked.verifier)(problem.demonstration, problem.answer) == 1.0


def test_a_task_of_ones_own_is_asked_once_and_mixes_with_others(tiny_config):
  name = "tests.tasks.own_task:letters"
  alone = catalog.select(settings(tiny_config, name=name))
  assert alone.name == alone.tasks[0].name == name
  assert alone.tasks[0] is catalog.select(settings(tiny_config, name=name)).tasks[0]
  assert {p.question for split in ("train", "heldout") for p in alone.split(split)[0]} == set("abc")
  both = catalog.select(
    settings(tiny_config, name="mixture", mixture=f'{{"{name}": 3, "sums": 1}}')
  )
  assert [task.name for task in both.tasks] == [name, "sums"] and both.rates == (0.75, 0.25)
  judged = catalog.select(settings(tiny_config, name=name, mixture="", verifier="numeric"))
  assert judged.verifier == verifiers.NAMED["numeric"]


WRONG = [
  ({"name": "chess"}, "task.name: got 'chess', expected one of chain_sum, spell_backward, sums, "),
  ({"name": "gsm8k:x"}, "task.name: got 'gsm8k:x', expected one of"),
  (
    {"name": "no_such_module:f"},
    "task.name: got 'no_such_module:f', expected an importable module",
  ),
  ({"name": "..:f"}, r"task.name: got '..:f', expected an importable module"),
  (
    {"name": "os:getpid"},
    "task.name: got 'os:getpid', expected a function decorated with @catalog",
  ),
  ({"name": "tests.tasks.own_verifier:fails_on_even"}, "expected a function decorated with @cat"),
  ({"name": "tests.tasks.own_task:none"}, "tests.tasks.own_task:none returned None, expected a c"),
  ({"name": "jsonl:my-label"}, "task.name: got 'jsonl:my-label', expected only letters, digits"),
  ({"name": "jsonl:../x"}, "task.name: got 'jsonl:../x', expected only letters, digits"),
  ({"name": "reasoning_gym"}, "task.name: got 'reasoning_gym', expected reasoning_gym:NAME"),
  ({"name": "reasoning_gym:gcd", "options": "{"}, "task.options: got '{', expected a JSON object"),
  ({"name": "reasoning_gym:gcd", "options": "[]"}, r"task.options: got '\[\]', expected a JSON"),
  ({"verifier": "best"}, "task.verifier: got 'best' for sums, expected numeric, math_verify"),
  ({"verifier": "reasoning_gym"}, "task.verifier: got 'reasoning_gym' for sums"),
  ({"mixture": '{"sums": 1}'}, "task.mixture: got .*, expected '' unless"),
  ({"name": "mixture"}, "task.mixture: got 0 tasks, expected at least 2"),
  ({"name": "mixture", "mixture": '{"sums": 1}'}, "task.mixture: got 1 tasks"),
  ({"name": "mixture", "mixture": MIXTURE, "verifier": "exact"}, "task.verifier: got 'exact'"),
  ({"name": "mixture", "mixture": '{"sums": 1, "chess": 1}'}, "task.name: got 'chess'"),
  ({"name": "mixture", "mixture": '{"sums": 1, "mixture": 1}'}, "task.name: got 'mixture'"),
  ({"name": "mixture", "mixture": '{"sums": 0, "gsm8k": 1}'}, "task.mixture: sums: got rate 0"),
  ({"name": "mixture", "mixture": '{"sums": {}, "gsm8k": 1}'}, "task.mixture: sums: got rate None"),
  ({"name": "mixture", "mixture": '{"sums": true, "gsm8k": 1}'}, "task.mixture: sums: got rate T"),
  ({"name": "mixture", "mixture": '{"sums": NaN, "gsm8k": 1}'}, "task.mixture: sums: got rate nan"),
  ({"name": "mixture", "mixture": '{"sums": 1, "gsm8k": 1e4}'}, "got rates .*at least 1/1000"),
  (
    {"name": "mixture", "mixture": '{"sums": {"rate": 1, "chat": true}, "gsm8k": 1}'},
    "task.mixture: sums: chat: got True, expected data_dir, train_file",
  ),
  (
    {"name": "mixture", "mixture": '{"sums": {"rate": 1, "size": "9"}, "gsm8k": 1}'},
    "task.mixture: sums: size: got '9', expected int",
  ),
  (
    {"name": "mixture", "mixture": '{"sums": {"rate": 1, "size": -5}, "gsm8k": 1}'},
    "task.mixture: sums: size: got -5, expected at least 1",
  ),
  (
    {"name": "mixture", "mixture": '{"sums": {"rate": 1, "max_bad_rows": -1}, "gsm8k": 1}'},
    "task.mixture: sums: max_bad_rows: got -1, expected at least 0 and below 1",
  ),
  (
    {"name": "mixture", "mixture": '{"sums": {"rate": 1, "question_column": ""}, "gsm8k": 1}'},
    "task.mixture: sums: question_column: got '', expected the name of a column",
  ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[str(w[0])[:60] for w in WRONG])
def test_wrong_tasks_are_refused_by_key(tiny_config, changes, message):
  settings(tiny_config, **changes)
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.validate(tiny_config)


def test_a_catch_is_warned_of(tiny_config):
  settings(tiny_config, name="reasoning_gym:prime_factorization")
  assert any("raises on text without numbers" in line for line in config_lib.warnings(tiny_config))
  mixture = '{"gsm8k": 1, "reasoning_gym:gsm_symbolic": 1}'
  settings(tiny_config, name="mixture", mixture=mixture)
  assert any("GSM8K's test set" in line for line in config_lib.warnings(tiny_config))


def test_the_first_held_out_problems_are_like_the_rest(tiny_config):
  """Sums of two digits are few, so that drawing order would put nearly all of them in front."""
  options = '{"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}'
  asked = catalog.select(
    settings(tiny_config, name="reasoning_gym:chain_sum", size=4000, options=options)
  )
  [held] = asked.split("heldout")
  short = [p.question.count("+") + p.question.count(" - ") == 1 for p in held]
  overall = sum(short) / len(short)
  assert 0.02 < overall < 0.15 and sum(short[:60]) / 60 < overall + 0.1


def test_problems_drawn_twice_have_the_same_answer_whatever_else_is_noted_of_them(tiny_config):
  pytest.importorskip("reasoning_gym")
  named = dict(name="reasoning_gym:chain_sum", options='{"max_terms": 2, "max_digits": 1}')
  [reading] = catalog.select(settings(tiny_config, size=400, **named)).read("train")
  assert len(reading.repeated) > 50
  assert all(reason.endswith("with the same answer") for _, reason in reading.repeated)
