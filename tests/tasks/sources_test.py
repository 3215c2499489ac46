"""Where problems come from: files, generators, and what is wrong with them."""

import importlib.util
import json
import os
import pathlib
import re

import pytest

from offpolicy_rl.tasks import catalog, scoring, sources, verifiers
from tests.conftest import ROOT

WORDS = ROOT / "tests" / "data" / "word_problems"  # ours, in GSM8K's format


def settings(config, **changes):
  """The section `task` with some keys changed."""
  for key, value in changes.items():
    config.task[key] = value
  return config.task


def write(path: pathlib.Path, *rows) -> str:
  path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
  return str(path)


def test_a_large_file_is_streamed(tiny_config, tmp_path):
  rows = [{"question": f"{i}+0=", "answer": i} for i in range(50)]
  keys = {"name": "jsonl", "train_file": write(tmp_path / "a.jsonl", *rows)}
  whole = catalog.select(settings(tiny_config, **keys, max_listed=50)).read("train")[0]
  [reading] = catalog.select(settings(tiny_config, **keys, max_listed=49)).read("train")
  assert whole.rest is None and reading.rest is not None
  assert reading.problems == whole.problems  # all fit into the first block
  later = list(reading.rest.open(48))
  assert [problem.where for problem in later] == [f"{tmp_path}/a.jsonl:{i}" for i in (49, 50)]
  assert reading.rest.usable(list(reading.rest.open(0))) == whole.problems


# ---------------------------------------------------------------- GSM8K


def test_gsm8k_reads_its_own_files(tiny_config):
  asked = catalog.select(settings(tiny_config, name="gsm8k", data_dir=str(WORDS)))
  asked.check()
  [train], [heldout] = asked.split("train"), asked.split("heldout")
  assert (len(train), len(heldout)) == (16, 8)
  assert asked.verifier == verifiers.NAMED["numeric"]
  assert train[1].answer == json.dumps("1,680")
  assert "<<" not in train[1].demonstration and train[1].demonstration.endswith("#### 1,680")
  for problem in train + heldout:
    assert verifiers.numeric(problem.demonstration, problem.answer) == 1.0
    assert verifiers.numeric("#### 7", problem.answer) == 0.0


def test_the_environment_may_say_where_gsm8k_is(tiny_config, monkeypatch):
  monkeypatch.setenv("GSM8K_DIR", str(WORDS))
  assert len(catalog.select(settings(tiny_config, name="gsm8k")).split("train")[0]) == 16
  monkeypatch.setenv("GSM8K_DIR", str(ROOT / "nowhere"))
  with pytest.raises(sources.TaskError, match=r"task.data_dir: .*/nowhere has neither train.jsonl"):
    catalog.select(settings(tiny_config, name="gsm8k")).check()


@pytest.mark.skipif("GSM8K_DIR" not in os.environ, reason="GSM8K_DIR names no copy of GSM8K")
def test_all_of_gsm8k_can_be_judged(tiny_config):
  asked = catalog.select(settings(tiny_config, name="gsm8k"))
  [train], [heldout] = asked.split("train"), asked.split("heldout")
  assert (len(train), len(heldout)) == (7473, 1319)
  verdicts = [verifiers.numeric(p.demonstration, p.answer) for p in train + heldout]
  assert verdicts == [1.0] * (7473 + 1319)


def test_a_solution_without_an_answer_is_named(tiny_config, tmp_path):
  for split in ("train", "test"):
    write(tmp_path / f"{split}.jsonl", {"question": "q", "answer": "no mark"})
  asked = catalog.select(settings(tiny_config, name="gsm8k", data_dir=str(tmp_path)))
  with pytest.raises(sources.TaskError, match=r"train.jsonl:1: answer: got 'no mark', expected"):
    asked.split("train")


# ---------------------------------------------------------------- MATH and other files


def test_math_takes_the_answer_or_the_last_box(tiny_config, tmp_path):
  write(
    tmp_path / "train.jsonl",
    {"problem": "p1", "solution": r"so \boxed{1}, no: $\boxed{\frac{1}{2}}$.", "level": "Level 5"},
    {"problem": "p2", "solution": r"\boxed{3}", "answer": "4"},
  )
  write(tmp_path / "test.jsonl", {"problem": "p3", "answer": 5})
  asked = catalog.select(settings(tiny_config, name="math", data_dir=str(tmp_path)))
  asked.check()
  [train], [heldout] = asked.split("train"), asked.split("heldout")
  assert [json.loads(p.answer) for p in train + heldout] == [r"\frac{1}{2}", "4", "5"]
  assert heldout[0].demonstration == r"\boxed{5}"
  assert asked.verifier == verifiers.NAMED["math_verify"]
  verify = scoring.resolve(asked.verifier)
  assert [verify(p.demonstration, p.answer) for p in (train[0], heldout[0])] == [1.0, 1.0]
  write(tmp_path / "train.jsonl", {"problem": "p1", "solution": "no box"})
  again = catalog.select(settings(tiny_config, name="math", data_dir=str(tmp_path)))
  with pytest.raises(sources.TaskError, match=r"train.jsonl:1: got neither answer nor"):
    again.split("train")
  (tmp_path / "test.jsonl").unlink()
  with pytest.raises(sources.TaskError, match=r"task.data_dir: got .*test.jsonl', expected a file"):
    again.check()


def test_one_question_with_one_answer_is_no_contradiction(tiny_config):
  """Beside the answer, reasoning-gym says how an entry was made, which differs."""
  entries = [{"answer": str(12 + (i == 2)), "metadata": {"source_index": i}} for i in range(3)]
  answers = [verifiers.dumps({"dataset": "gcd", "entry": entry}) for entry in entries]
  answers += [json.dumps({"any": i}) for i in range(2)]
  asked = ["q", "q", "q", "own", "own"]
  listed = [sources.Problem(*pair, "12") for pair in zip(asked, answers, strict=True)]
  reading = catalog.Task("t", lambda: listed, "m:f", heldout=lambda: []).read("train")
  assert [row.why.rpartition("with ")[2] for row in reading.repeated] == [
    "the same answer",
    "another answer",
    "another answer",
  ]


def test_any_file_with_two_columns_is_a_task(tiny_config, tmp_path):
  rows = [{"ask": f"q{i}", "say": i, "how": f"it is {i}"} for i in range(200)]
  path = write(tmp_path / "a.jsonl", *rows, "", {"ask": "q7", "say": 8})
  wanted = dict(name="jsonl", train_file=path, question_column="ask", answer_column="say")
  asked = catalog.select(settings(tiny_config, **wanted))
  [train], [heldout] = asked.split("train"), asked.split("heldout")
  assert len(train) + len(heldout) == 200 and 10 < len(heldout) < 50
  assert not {p.question for p in train} & {p.question for p in heldout}
  found = {p.question: p for p in train + heldout}
  assert json.loads(found["q7"].answer) == "7"  # the first of those that ask the same
  [again] = asked.read("train")[0].repeated
  assert again == (f"{path}:202", f"asks what {path}:8 asks, with another answer")
  assert found["q9"].demonstration == "9"
  asked = catalog.select(settings(tiny_config, demonstration_column="how", max_bad_rows=0.0))
  with pytest.raises(sources.TaskError, match=r"a.jsonl:202: how: got only the columns \['ask"):
    asked.split("train")


def test_what_is_held_out_is_not_trained_on(tiny_config, tmp_path):
  train = write(tmp_path / "a.jsonl", *({"question": f"q {i}", "answer": "1"} for i in range(9)))
  held = write(
    tmp_path / "b.jsonl", *({"question": f"q  {i}\n", "answer": "1"} for i in (3, 8, 10))
  )
  wanted = settings(tiny_config, name="jsonl", train_file=train, heldout_file=held)
  asked = catalog.select(wanted)
  assert [p.question for p in asked.split("train")[0]] == [f"q {i}" for i in (0, 1, 2, 4, 5, 6, 7)]
  assert len(asked.split("heldout")[0]) == 3


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ("{", r"a.jsonl:1: no JSON: "),
    ("[1]", r"a.jsonl:1: got an array, expected an object; one object per line"),
    (
      {"answer": "1"},
      r"question: got only the columns \['answer'\], expected .* by --.*\.question_column=NAME",
    ),
    (
      {"question": "q", "Answers": 1},
      r"answer: got only .* by --config.task.answer_column=Answers",
    ),
    ({"question": "q", "answer": ["1"]}, r"a.jsonl:1: answer: got \['1'\], expected a text"),
    ({"question": "q", "answer": True}, r"a.jsonl:1: answer: got True, expected a text"),
  ],
)
def test_bad_rows_are_named_by_file_and_line(tiny_config, tmp_path, row, message):
  path = write(tmp_path / "a.jsonl", row)
  with pytest.raises(sources.TaskError, match=message):
    catalog.select(settings(tiny_config, name="jsonl", train_file=path)).split("train")


@pytest.mark.parametrize("key", ["train_file", "heldout_file"])
def test_a_missing_file_is_named_by_key(tiny_config, tmp_path, key):
  there = write(tmp_path / "a.jsonl", {"question": "q", "answer": "1"})
  wanted = {"train_file": there, key: str(tmp_path / "nowhere")}
  with pytest.raises(sources.TaskError, match=f"task.{key}: got .*nowhere', expected a file of"):
    catalog.select(settings(tiny_config, name="jsonl", **wanted)).check()


# ---------------------------------------------------------------- reasoning-gym

# One per family of the package; all 105 were tried, see verifiers.REFUSED and sources.WARNED.
NAMES = [
  "arc_agi",
  "basic_arithmetic",
  "binary_matrix",
  "caesar_cipher",
  "gcd",
  "gsm_symbolic",
  "letter_counting",
  "n_queens",
  "prime_factorization",
  "rearc",
  "simple_equations",
  "spiral_matrix",
  "string_insertion",
  "syllogism",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_task_of_reasoning_gym_accepts_its_own_answers(tiny_config, name):
  asked = catalog.select(settings(tiny_config, name=f"reasoning_gym:{name}", size=20))
  asked.check()
  verify = scoring.resolve(asked.verifier)
  for problem in asked.split("train")[0]:
    assert verify(problem.demonstration, problem.answer) == 1.0
    assert verify(f"So: <answer>{problem.demonstration}</answer>", problem.answer) == 1.0


def test_options_reach_the_generator(tiny_config):
  options = '{"min_terms": 5, "max_terms": 5, "min_digits": 1, "max_digits": 1}'
  wanted = settings(tiny_config, name="reasoning_gym:chain_sum", size=40, options=options)
  problems = [p for split in ("train", "heldout") for p in catalog.select(wanted).split(split)[0]]
  assert len(problems) == 40
  assert all(sum(p.question.count(sign) for sign in (" + ", " - ")) == 4 for p in problems)


@pytest.mark.parametrize("name", sorted(verifiers.REFUSED))
def test_tasks_that_can_not_teach_are_refused(tiny_config, name):
  with pytest.raises(sources.TaskError, match=f"reasoning_gym:{name}', which can't be trained on"):
    catalog.select(settings(tiny_config, name=f"reasoning_gym:{name}"))


# (what gets full marks, where this is right)
FULL_MARKS = {
  "game_of_life_halting": ("I do not know.", "True"),
  "coin_flip": ("10", "1"),
  "complex_arithmetic": ("nan", "48.0 + 36.0i"),
}


def test_the_reasons_for_refusing_hold():
  """The package may mend a scorer; then the list is to be shortened."""
  import reasoning_gym

  for name, reason in verifiers.REFUSED.items():
    if name == "composite" or "as Python" in reason:
      continue
    entry = reasoning_gym.create_dataset(name, size=1, seed=0)[0]
    if "full marks" in reason:
      given, right = FULL_MARKS[name]
      entry = reasoning_gym.create_dataset(name, size=1, seed=0)[0] | {"answer": right}
      assert reasoning_gym.get_score_answer_fn(name)(given, entry) == 1.0
    else:
      assert entry["answer"] is None


# Files of the package that run text of their own making: to draw problems, not to judge them.
HARMLESS = {
  "basic_arithmetic",
  "codeio",
  "generators_00_49",
  "generators_50_99",
  "propositional_logic",  # a parser of its own
}


def test_no_other_scorer_runs_text_as_python():
  """A new release that adds one is to be noticed."""
  [root] = importlib.util.find_spec("reasoning_gym").submodule_search_locations
  runs = re.compile(r"(?<!def )\b(eval|exec|parse_expr|sympify)\(")
  found = {p.stem for p in pathlib.Path(root).rglob("*.py") if runs.search(p.read_text("utf-8"))}
  refused = {name for name, reason in verifiers.REFUSED.items() if "as Python" in reason}
  assert found == refused | set(verifiers.JUDGED_BY_EQUALITY) | HARMLESS


@pytest.mark.parametrize("name", verifiers.JUDGED_BY_EQUALITY)
def test_a_completion_is_not_run(name, tmp_path):
  """The package itself would; what it gives full marks, has them here."""
  import reasoning_gym

  theirs = reasoning_gym.get_score_answer_fn(name)
  file = tmp_path / "run"
  for entry in reasoning_gym.create_dataset(name, size=10, seed=0):
    answer = verifiers.dumps({"dataset": name, "entry": entry})
    for text in (entry["answer"], entry["answer"][1:], str(list(entry["answer"])), "", "[]"):
      assert verifiers.reasoning_gym(text, answer) == (theirs(text, entry) == 1.0)
    assert verifiers.reasoning_gym(f"[open({str(file)!r}, 'w')]", answer) == 0.0
  assert not file.exists()


@pytest.mark.parametrize("name", sorted(verifiers.REFUSED))
def test_a_refused_task_is_not_judged_either(name):
  """The learner of a sampler may be another release, or none of ours."""
  answer = verifiers.dumps({"dataset": name, "entry": {"answer": "1", "metadata": {}}})
  with pytest.raises(ValueError, match=f"reasoning_gym:{name} can't be judged: it"):
    verifiers.reasoning_gym("1", answer)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"name": "reasoning_gym:chess"}, r"task.options: got {} for reasoning_gym:chess: .*not"),
    ({"options": '{"min_term": 2}'}, r"task.options: got {\"min_term\": 2} for reasoning"),
    ({"options": '{"min_terms": -2}'}, r"task.options: got {\"min_terms\": -2} .*min_terms"),
  ],
)
def test_wrong_names_and_options_are_refused_by_the_check(tiny_config, changes, message):
  wanted = settings(tiny_config, **({"name": "reasoning_gym:chain_sum"} | changes))
  with pytest.raises(sources.TaskError, match=message):
    catalog.select(wanted).check()


def test_tests_of_programs_are_objects_lists_or_texts(tiny_config, tmp_path):
  tests = {"inputs": ["1"], "outputs": ["2"]}
  rows = [
    {"question": "a", "tests": tests, "solution": "print(2)"},
    {"question": "b", "tests": json.dumps(tests)},
    {"question": "c", "tests": ["assert f(1) == 2"]},
    {"question": "d", "tests": ["assert f('\ud800')"]},
    {"question": "e", "tests": True},
  ]
  keys = {"name": "jsonl", "train_file": write(tmp_path / "a.jsonl", *rows)}
  keys |= {"answer_column": "tests", "verifier": "code"}
  *first, half, flag = catalog.select(settings(tiny_config, **keys)).tasks[0].problems()
  assert [json.loads(one.answer) for one in first] == [tests, json.dumps(tests), rows[2]["tests"]]
  assert {one.demonstration for one in first} == {""}, "tests are nothing to imitate"
  assert "half of a surrogate pair" in half.why and "expected a text or a number" in flag.why
  keys |= {"demonstration_column": "solution"}
  shown, *missing = catalog.select(settings(tiny_config, **keys)).tasks[0].problems()
  assert shown.demonstration == "print(2)" and "solution" in missing[0].why
