"""Keys: what each kind allows, and how all of them are listed."""

import re

import pytest

from offpolicy_rl.cli import main
from offpolicy_rl.config import keys, listing
from tests.conftest import ROOT

KINDS = [
  (keys.integer(2, at_least=1, at_most=3), [1, 3], [0, 4, 10**400]),
  (keys.integer(2, at_least=2, a_multiple_of=2), [2, 4], [0, 3]),
  (keys.number(0.5, above=0, below=1), [0.1, 0.9], [0.0, 1.0, float("nan")]),
  (keys.number(0.0, at_least=0), [0.0, 1e300], [-0.1, float("inf")]),
  (keys.one_of("a", ("a", "b")), ["a", "b"], ["", "c", "a,b"]),
  (keys.chosen_from("a", ("a", "b")), ["a", "b,a"], ["", "c", "a, b"]),
  (keys.text("", "a long text", lambda x: len(x) > 3), ["long"], ["", "abc"]),
  (keys.regular_expression(""), ["", "a+"], ["(", "a{9999999999}", "(" * 10_000]),
  (keys.day(""), ["", "2026-02-28"], ["2026-02-29", "today"]),
  (keys.json_texts(""), ["", "[]", '["a"]'], ["a", "{}", '[""]', "[1]", "[" * 100_000]),
  (keys.json_object("", without=("x",)), ["", '{"y": 1}'], ["[]", '{"x": 1}', "{"]),
]


@pytest.mark.parametrize(("key", "good", "bad"), KINDS, ids=lambda x: getattr(x, "expected", ""))
def test_a_key_allows_its_values_and_no_others(key, good, bad):
  assert all(key.is_good(value) and key.has_type(value) for value in good)
  assert not any(key.is_good(value) for value in bad)


def test_types_are_exact_but_for_whole_floats():
  whole, real = keys.integer(1), keys.number(1.0)
  assert whole.has_type(1) and real.has_type(1) and real.has_type(1.0)
  assert not whole.has_type(1.0) and not whole.has_type(True) and not real.has_type(True)
  assert not real.has_type(10**400)


def test_bounds_are_told_in_words():
  assert keys.integer(4, at_least=2, a_multiple_of=2).expected == ("at least 2 and a multiple of 2")
  assert keys.number(0.5, above=0, at_most=1).expected == "above 0 and at most 1"


def test_defaults_become_a_locked_configuration_that_keeps_types():
  rate = keys.Key(None, float, "", lambda x: True)
  config = keys.locked_config({"A": {"seed": keys.integer(3)}, "B": {"learner.rate": rate}})
  assert config.to_dict() == {"seed": 3, "learner": {"rate": None}}
  with pytest.raises(TypeError):
    config.learner.rate = "fast"
  with pytest.raises(AttributeError):
    config.learner.rote = 0.5
  config.learner.rate = 0.5
  assert config.learner.rate == 0.5


def test_every_key_has_one_heading_and_a_meaning():
  listed = [name for group in keys.groups().values() for name in group]
  assert len(listed) == len(set(listed)) == len(keys.all_keys()) > 100
  for name, key in keys.all_keys().items():
    assert key.expected and key.meaning, name


def test_the_list_fits_a_terminal_and_can_be_searched(capsys):
  assert main.main(["keys"]) == 0
  everything = capsys.readouterr().out
  assert max(map(len, everything.splitlines())) <= 80
  shown = re.findall(r"^  ([a-z_.0-9]+) = ", everything, re.MULTILINE)
  assert shown == list(keys.all_keys())
  assert main.main(["keys", "Group_Size"]) == 0
  found = capsys.readouterr().out
  assert "  learner.group_size = 8  (int, at least 2)\n      completions per prompt" in found
  assert "learner.steps" not in found and len(found.splitlines()) <= 10
  assert main.main(["keys", "Group_Size", "--markdown"]) == 0
  assert "| `learner.group_size` | `8` |" in (table := capsys.readouterr().out)
  assert "learner.steps" not in table
  assert main.main(["keys", "groupsize"]) == 2
  assert "'groupsize', which no key has" in capsys.readouterr().err


def test_the_table_of_the_page_is_as_generated():
  page = (ROOT / "configs" / "README.md").read_text()
  _, table = page.split("## Every key\n")
  message = "replace what is below `## Every key` by what `offpolicy-rl keys --markdown` prints"
  assert table.splitlines() == list(listing.table()), message


@pytest.mark.parametrize(
  ("problem", "flags"),
  [
    (
      "objective.name: got 'grop', expected one of dr_grpo, grpo, ipo",
      "--config.objective.name=grpo",
    ),
    ("task.verifier: got 'exac' for sums, expected numeric, exact", "--config.task.verifier=exact"),
    ("lag.mode: got 'zzz', expected one of async, fixed", "--config.lag.mode=..."),
    (
      "learner.steps, lag.max_lag: got 3 and 4, expected another",
      "--config.learner.steps=... --config.lag.max_lag=...",
    ),
    ("rows.jsonl: got 'grop', expected grpo", ""),
    (
      "task.name: got tfds:cats:2.1.0, expected one of tfds:cats:2.0.0, tfds:dogs.",
      "--config.task.name=tfds:cats:2.0.0",
    ),
    (
      "task.verifier: got 'exact' for seqio:x, expected exact or module:function",
      "--config.task.verifier=...",
    ),
    ("task.verifier: got 'mine:judge', expected there is no mine", "--config.task.verifier=..."),
    ("objective.name: got 'GRPO', expected one of dr_grpo, grpo", "--config.objective.name=grpo"),
  ],
)
def test_advice_names_the_flag_and_the_word_that_was_meant(problem, flags):
  said = listing.advice(problem)
  assert said.startswith(f"set {flags};") if flags else said == ""
