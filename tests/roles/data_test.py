"""What a run would make of its data, said before it starts; and all that a ticket needs."""

import json
import re

import numpy as np
import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import main
from offpolicy_rl.roles import build, check, data
from offpolicy_rl.tasks import catalog, prompts, sources
from tests.tasks.sources_test import settings, write

SUMS = [{"question": f"{i}+1=", "answer": str(i + 1)} for i in range(40)]


def flags(path, **keys) -> list[str]:
  keys = {"name": "jsonl", "train_file": path, "max_prompt_tokens": 8} | keys
  return ["--config=configs/test.py", *(f"--config.task.{k}={v}" for k, v in keys.items())]


def checked(capsys, path, **keys):
  """(exit code, lines of the report, what went to stderr)."""
  code = main.main(["check", *flags(path, **keys)])
  printed = capsys.readouterr()
  return code, printed.out.splitlines(), printed.err


def test_a_report_says_everything_and_fits_a_terminal(tmp_path, capsys):
  train = write(
    tmp_path / "a.jsonl",
    *SUMS,
    {"question": "", "answer": "1"},
    {"question": "x" * 9, "answer": 1},
    SUMS[3],
    SUMS[4] | {"answer": "6"},
    {"question": "pi", "answer": "about three"},
  )
  held = write(tmp_path / "b.jsonl", *SUMS[:5], {"question": "1 + 1", "answer": 2})
  code, lines, _ = checked(capsys, train, heldout_file=held, max_bad_rows=0.05, verifier="numeric")
  assert code == 0 and lines[-1] == "A run can start."
  assert lines[:3] == [
    "task jsonl, judged by verifiers:numeric",
    "  train          36 prompts of 45 rows, 1 can't be used, 1 too long, 2 repeated, 5 held out",
    "  heldout         6 prompts of 6 rows",
  ]
  text = "\n".join(lines)
  for part in (
    "train prompts                    2       5       5       9       9       8",
    "a completion ends with '<eos>' (1), or after",
    "largest message: the model's tokenizer and the configuration",
    f"train: 1 can't be used\n  {train}:41: question: got '', expected a text that is not blank\n",
    f"jsonl, train: 1 with answers that the verifier can't read\n  {train}:45: ",
    f"train: 2 repeated, 1 of them with another answer\n  {train}:43: asks what {train}:4 asks, w",
    f"jsonl, train: 1 too long\n  {train}:42: 9 tokens",
  ):
    assert part in text
  rows = [line for line in lines if str(tmp_path) in line]
  assert all(len(line) <= 80 for line in lines[3:] if line not in rows)


@pytest.mark.parametrize(
  ("rows", "keys", "message"),
  [
    ([*SUMS, {"question": "q", "answer": None}], {}, ":41: answer: got None, .*1 of 41 rows"),
    (SUMS, {"max_prompt_tokens": 2}, "max_prompt_tokens: got 2, which leaves no prompt of task j"),
    ([SUMS[0]], {}, "none of its 1 problems .* is held out"),
    (
      [*SUMS, {"question": "q", "answer": "two"}],
      {"verifier": "numeric"},
      ":41: .*two.*; task.verifier=[a-z_]+ can .*1 of",
    ),
    (SUMS, {"max_completion_tokens": 10**7}, "transport.max_message_mb: got 64, expected at least"),
  ],
  ids=["row", "prompts", "one row", "gold", "message"],
)
def test_what_could_not_start_is_a_usage_error(tmp_path, capsys, rows, keys, message):
  path = write(tmp_path / "a.jsonl", *rows)
  code, lines, told = checked(capsys, path, **keys)
  assert code == 2 and "A run can start." not in lines
  assert len(told.splitlines()) == 1 + ("  set --config." in told)
  assert re.search(message, told)
  # A run says the same, before it makes a directory.
  run_dir = tmp_path / "run"
  assert main.main(["learner", *flags(path, **keys), f"--run_dir={run_dir}"]) == 2
  assert capsys.readouterr().err.removeprefix("offpolicy-rl learner") == (
    told.removeprefix("offpolicy-rl check")
  )
  assert not run_dir.exists()


def test_a_split_without_problems_is_not_blamed_on_their_length(tiny_config):
  empty = prompts.Tokenized([], [], [], [])
  with pytest.raises(ValueError, match="task.name: got sums, .* split heldout .*one in eight"):
    data.require_some(tiny_config, "heldout", [empty])


def test_a_start_says_which_answers_it_bears_with(tiny_config, tmp_path, caplog):
  bad = {"question": "q", "answer": "two hours and 3"}  # trained on: its hash decides
  path = write(tmp_path / "a.jsonl", *SUMS, bad)
  asked = dict(name="jsonl", train_file=path, verifier="numeric", max_prompt_tokens=20)
  settings(tiny_config, **asked, max_bad_rows=0.1)
  selection, policy = config_lib.check_data(tiny_config), data.initial_policy(tiny_config)
  data.check_problems(tiny_config, selection, policy)
  assert "1 problems can't be judged and earn nothing; the first: " + path in caplog.text
  assert "expected one number" in caplog.text


def test_local_reads_its_rows_before_it_makes_a_directory(tmp_path, capsys):
  path = write(tmp_path / "a.jsonl", *SUMS, "{")
  assert main.main(["local", *flags(path), f"--run_dir={tmp_path / 'run'}"]) == 2
  assert f"{path}:41: no JSON" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


def example(prompt, answer='"1"'):
  return prompts.Example(np.array(prompt, np.int32), np.array([1], np.int32), answer)


@pytest.mark.parametrize(
  ("made", "message"),
  [
    (example([3] * 5), None),
    (example([]), r"ticket.prompt_tokens.shape: got \(0,\), expected at least one token"),
    (example([3] * 6), "ticket.prompt_tokens: got '6 tokens', expected at most 5"),
    (example([3, 100]), r"ticket.prompt_tokens: got 100, expected token ids in \[0, 100\)"),
    (example([3, -1]), "ticket.prompt_tokens: got -1, expected token ids"),
    (example([3], "\u20ac" * (1 << 20)), "ticket: got 1 tokens and an answer of 1048576 char"),
  ],
  ids=["good", "empty", "long", "beyond", "negative", "answer"],
)
def test_a_ticket_that_no_sampler_could_answer_is_not_made(tiny_config, made, message):
  tiny_config.task.max_prompt_tokens, tiny_config.transport.max_message_mb = 5, 2
  why = data.ticket_fault(tiny_config, 100)(made)
  assert why is None if message is None else re.search(message, why)


class Words:
  """Of a tokenizer whose template makes nothing of one question, and refuses another."""

  turn_end = 1

  def prompt(self, question):
    if question == "refused":
      raise ValueError("chat template: no")
    return [] if question == "nothing" else [3]

  def encode(self, text):
    return [4]


def test_prompts_that_cant_be_made_are_left_out_and_named(tiny_config):
  problems = [sources.Problem(q, '"1"', "1", q) for q in ("nothing", "a", "refused")]
  rendering = prompts.Rendering(Words(), 5, data.ticket_fault(tiny_config, 100))
  made = prompts.tokenize(problems, rendering)
  assert [e.where for e in made.examples] == ["a"]
  assert made.left_out == [
    ("nothing", "ticket.prompt_tokens.shape: got (0,), expected at least one token"),
    ("refused", "chat template: no"),
  ]
  task = catalog.Task("own", lambda: problems, "m:f", heldout=lambda: [])
  selection = catalog.Selection("own", (task,))
  with pytest.raises(
    catalog.TaskError, match=r"^nothing: ticket.prompt.* \(2 of 3 rows can't be u"
  ):
    prompts.tokenize_split(selection, "train", lambda _: rendering)


def test_a_run_says_what_its_prompts_are(tiny_config, tmp_path):
  bad = {"question": "q", "answer": None}
  path = write(tmp_path / "a.jsonl", *SUMS, bad, {"question": "x" * 9, "answer": 1})
  settings(tiny_config, name="jsonl", train_file=path, max_prompt_tokens=8, max_bad_rows=0.1)
  policy, selection = data.initial_policy(tiny_config), catalog.select(tiny_config.task)
  train, held = (data.examples(tiny_config, selection, policy, split) for split in data.SPLITS)
  counts = [len(made.examples) for [(_, made)] in (train, held)]
  assert sum(counts) == 40 and [row.where for row in train[0][1].left_out] == [f"{path}:41"]
  assert data.summary("jsonl", train, held) == (
    f"task jsonl: {counts[0]} prompts, {counts[1]} held out; too long: 1 for training; 1 can't "
    f"be used: {path}:41: answer: got None, expected a text or a number"
  )


def test_a_learner_need_not_have_the_verifier(tiny_config, tmp_path, caplog):
  """Samplers judge. The check does need it: judging is what it is asked for."""
  path = write(tmp_path / "a.jsonl", *SUMS)
  settings(tiny_config, name="jsonl", train_file=path, max_prompt_tokens=8, verifier="nowhere:f")
  data.check_start(tiny_config)
  assert "not checked whether right answers can be judged: " in caplog.text
  assert "'nowhere:f', expected an importable module:function" in caplog.text
  assert main.main(["check", *flags(path, verifier="nowhere:f")]) == 2
  write(tmp_path / "a.jsonl", *SUMS[:1])
  with pytest.raises(ValueError, match="none of its 1 problems"):
    data.check_start(tiny_config)


def test_a_model_that_is_not_there_is_a_usage_error(tmp_path, capsys):
  path = write(tmp_path / "a.jsonl", *SUMS)
  assert main.main(["check", *flags(path), f"--config.model.checkpoint={tmp_path}"]) == 2
  assert f"{tmp_path}/config.json" in capsys.readouterr().err


def test_a_start_lists_no_problems_that_take_long_to_list(tiny_config, monkeypatch):
  settings(tiny_config, name="reasoning_gym:gcd", size=100_000)
  monkeypatch.setattr(catalog.Task, "read", lambda *_: pytest.fail("too early"))
  data.check_start(tiny_config)


def test_lengths_of_nothing_are_not_0(tiny_config, tmp_path):
  path = write(
    tmp_path / "a.jsonl", *({"question": "q" * 20 + str(i), "answer": "r"} for i in range(30))
  )
  settings(tiny_config, name="jsonl", train_file=path, max_prompt_tokens=9)
  policy = build.make_policy(tiny_config, None)
  found = data.inspect(tiny_config, catalog.select(tiny_config.task), policy)
  told = list(check.report(tiny_config, policy, found))
  [row] = [line.split() for line in told if line.startswith("  train demonstrations")]
  assert row[2:7] == ["-"] * 5


def test_golds_of_a_mixture_are_judged_by_their_own_verifier(tiny_config, tmp_path):
  path = write(tmp_path / "a.jsonl", *({"question": f"q{i}", "answer": "red"} for i in range(99)))
  members = {
    "jsonl:words": {"rate": 1, "train_file": path},
    "jsonl:numbers": {"rate": 1, "train_file": path, "verifier": "numeric"},
  }
  settings(tiny_config, name="mixture", mixture=json.dumps(members), max_prompt_tokens=9)
  selection = catalog.select(tiny_config.task)
  policy = build.make_policy(tiny_config, None)
  found = data.inspect(tiny_config, selection, policy, sample=20)
  for part in found:
    bad, some = len(part.unreadable), len(part.made.examples)
    assert (bad == 0) if part.task.name == "jsonl:words" else (0 < bad == some <= 20)
  assert found[1].unreadable[0].where.startswith(f"{path}:")
  told = list(check.report(tiny_config, policy, found))
  row = next(i for i, line in enumerate(told) if line == "  jsonl:numbers, train")
  assert told[row + 1].split()[:2] == ["prompts", "2"] and len(told[row + 1]) <= 80
