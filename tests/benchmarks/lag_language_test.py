"""The study of lag on a language model: task, tuning, rows, decision, and one run end to end."""

import dataclasses
import itertools
import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import lag_language, lag_language_entries, language_task, paired
from benchmarks import lag_language_summary as summary
from benchmarks.lag_language import BY_LABEL, Job, WarmStart

STUDY = lag_language.Study(
  tuning_seeds=(1001,), seeds=(0, 1, 2), secondary_seeds=(0, 1), widest=math.inf
)
TINY = lag_language.Study(
  steps=4, warm_steps=2, points=2, problems=2, final_completions=2, learning_rates=(1e-3,)
)


def row(job: Job, run: float, final: float = 0.5, study: lag_language.Study = STUDY) -> dict:
  """A row whose held-out pass@1 is `run` at every point and `final` at the end."""
  last = {"pass@1": final, "pass@8": final, "pass@64": final, "entropy": 9.0}
  return {
    **job._asdict(),
    "steps": study.steps,
    "warm_steps": study.warm_steps,
    "curve": {"step": [0, 1, 2], "pass@1": [0.0, run, run], "ess": [0.25, 0.75]},
    "noise": [1.0, 2.0, 9.0, float("nan")],  # a batch without signal has none
    "final": last | {"entropy_right": float("nan")},
    "seconds": 36.0,
    "machine": "m",
  }


# ---------------------------------------------------------------- the task


def test_demonstrations_are_right_short_enough_and_not_all_alike():
  card, task = language_task.get_config().task, language_task.signed_sums()
  problems = language_task.problems()
  assert problems == language_task.problems()
  assert len({problem.question for problem in problems}) > 0.99 * language_task.PROBLEMS
  for problem in problems[:500]:
    assert language_task.reaches_target(problem.demonstration, problem.answer) == 1.0
    assert len(task.vocabulary.encode(problem.question)) <= card.max_prompt_tokens
    assert len(task.vocabulary.encode(problem.demonstration)) < card.max_completion_tokens
  digits = [problem.demonstration.replace("-", "").replace("+", "") for problem in problems[:500]]
  asked = [problem.question[: language_task.NUMBERS] for problem in problems[:500]]
  assert np.mean([a == b for a, b in zip(digits, asked, strict=True)]) < 0.05  # in another order


def test_the_verifier_takes_every_right_answer_and_no_other():
  answer = json.dumps({"numbers": [1, 1, 2, 3, 4, 5, 9], "target": 7})
  numbers = (1, 1, 2, 3, 4, 5, 9)
  for signs in itertools.product((1, -1), repeat=7):
    text = "".join(f"{s * n:+d}" for s, n in zip(signs, numbers, strict=True)).removeprefix("+")
    right = sum(s * n for s, n in zip(signs, numbers, strict=True)) == 7
    assert language_task.reaches_target(text, answer) == right
  wrong = (
    "",
    "7",
    "9-2",
    "1+1+2+3+4+5-9+0",
    "+9+4+1-1-2-3-1",
    "9+4+1-1-2-3-5 ",
    "__import__('os')",
  )
  assert not any(language_task.reaches_target(text, answer) for text in wrong)


def test_entropy_among_right_answers_of_a_known_policy():
  """Two right answers of chance 1/4 each and one wrong: given that it is right, ln 2 nats."""
  from benchmarks import lag_language_run

  made = lambda chance, right: SimpleNamespace(
    logprobs=np.log(np.array([chance])), verdict=float(right)
  )
  drawn = [made(0.25, True), made(0.25, True), made(0.5, False), made(0.5, False)]
  solved = SimpleNamespace(group=SimpleNamespace(trajectories=drawn))
  unsolved = SimpleNamespace(group=SimpleNamespace(trajectories=drawn[2:]))
  assert lag_language_run.entropy_right([solved, unsolved]) == pytest.approx(math.log(2))
  assert math.isnan(lag_language_run.entropy_right([unsolved]))
  found = lag_language_run.accuracies([solved, unsolved], (1, 2))
  assert found["pass@1"] == 0.25 and found["pass@2"] == pytest.approx(5 / 12, rel=1e-4)
  assert found["entropy"] == pytest.approx((2 * math.log(4) + 4 * math.log(2)) / 6, rel=1e-4)


# ---------------------------------------------------------------- which runs


def test_presets_take_the_keys_of_every_point():
  from benchmarks import lag_language_run
  from offpolicy_rl import config as config_lib

  made = set()
  every = [
    (entry, *point)
    for entry in lag_language.available()
    for point in lag_language.points([], entry, 64, STUDY)
  ]
  for entry, value, rate in every:
    if entry in lag_language.available():
      config = lag_language_run.configuration(Job(entry.label, value, rate, 16, 3), STUDY)
      choices = config_lib.objective_choices(config)
      made.add((choices, config.learner.learning_rate))
      assert (config.lag.max_lag, config.seed, config.lag.mode) == (16, 3, "fixed")
      assert entry.tuned in ("", "clip") or getattr(choices, entry.tuned) == value
  assert len(made) == len(every) == 51


def tuned_rows(entries, score_of, study=STUDY) -> list[dict]:
  """Rows of the whole tuning, given the score of a job."""
  rows: list[dict] = []
  while left := lag_language.missing(lag_language.tuning_jobs(rows, entries, study), rows):
    rows += [row(job, score_of(job)) for job in left]
  return rows


def test_tuning_chooses_by_the_lags_of_the_plan():
  entry, (low, high) = BY_LABEL["mean"], lag_language_entries.BETAS
  jobs = lag_language.tuning_jobs([], [entry], STUDY)
  assert len(jobs) == len(set(jobs)) == 12 and {job.lag for job in jobs} == {16, 256}
  best = {(low, 1e-4, 16): 0.7, (high, 1e-4, 256): 0.6, (high, 3e-5, 16): 0.5}
  rows = tuned_rows([entry], lambda job: best.get((job.value, job.rate, job.lag), 0.4))
  assert lag_language.report_settings(rows[:11], entry, STUDY).keys() == set()
  assert lag_language.report_settings(rows, entry, STUDY) == {
    (64, 1): (low, 1e-4),
    (64, 3): (low, 3e-4),
    (0, 1): (low, 1e-4),
    (16, 1): (low, 1e-4),
    (256, 1): (high, 1e-4),
  }
  reported = lag_language.report_jobs(rows, [entry, BY_LABEL["copg"]], STUDY)
  assert [job.seed for job in reported] == [0, 0, 1, 1, 2, 2] + [0] * 3 + [1] * 3
  assert [job.lag for job in reported] == [64] * 6 + [0, 16, 256] * 2
  assert reported[0] == ("mean", low, 1e-4, 64, 0)


def test_tuning_goes_on_until_the_best_point_has_all_its_neighbours():
  entry = BY_LABEL["mean"]
  peak = {16: (1e-5, 1e-5), 256: (1.0, 1e-4)}  # far outside of the grid, and at its edge

  def score_of(job):
    value, rate = peak[job.lag]
    return 1 - 0.1 * abs(np.log(job.value / value)) - 0.1 * abs(np.log(job.rate / rate))

  rows = tuned_rows([entry], score_of)
  assert lag_language.chosen(rows, entry, 16, STUDY) == (1e-5, 1e-5)
  assert lag_language.chosen(rows, entry, 256, STUDY) == (1.0, 1e-4)
  tried = {(r["value"], r["rate"]) for r in rows if r["lag"] == 16}
  assert tried >= {(3e-6, 1e-5), (3e-5, 1e-5), (1e-5, 3e-6), (1e-5, 3e-5)}
  neighbour = lambda r: (r["value"], r["rate"], r["lag"]) == (3e-6, 1e-5, 16)
  without = [r for r in rows if not neighbour(r)]
  assert len(without) == len(rows) - 1
  assert lag_language.chosen(without, entry, 16, STUDY) is None
  assert len(rows) < 60
  grpo = tuned_rows([BY_LABEL["grpo"]], lambda job: 1 / job.rate**0.01 if job.rate > 5e-6 else 0)
  assert sorted({r["rate"] for r in grpo}) == [3e-6, 1e-5, 3e-5, 1e-4, 3e-4]


def test_neighbours_are_near_in_the_second_comparison():
  """The best point is at 0.03; 0.1 lies between it and the grid's 0.3."""
  entry, finer = BY_LABEL["mean"], dataclasses.replace(STUDY, widest=5.0)
  score_of = lambda job: (
    1 - 0.1 * abs(np.log(job.value / 0.03)) - 0.1 * abs(np.log(job.rate / 1e-4))
  )
  tried = {}
  for study in (STUDY, finer):
    rows = tuned_rows([entry], score_of, study)
    assert lag_language.chosen(rows, entry, 64, study) == (0.03, 1e-4)
    tried[study.widest] = {row["value"] for row in rows}
  assert tried == {math.inf: {0.01, 0.03, 0.3}, 5.0: {0.01, 0.03, 0.1, 0.3}}
  assert lag_language.chosen(tuned_rows([entry], score_of), entry, 64, finer) is None
  for label in ("grpo_wide", "cispo", "m2po", "centering"):
    entry = BY_LABEL[label]
    for value in entry.values:
      score_of = lambda job, value=value: 1.0 * (job.value == value)
      jobs = [
        {lag_language.job_of(r) for r in tuned_rows([entry], score_of, s)} for s in (STUDY, finer)
      ]
      assert jobs[0] == jobs[1]


def test_a_job_waits_for_the_warm_start_of_its_seed():
  jobs = [Job("grpo", None, 1e-3, lag, seed) for seed in (7, 8) for lag in (0, 64)]
  tasks = lag_language.tasks_of(jobs, {7})
  assert tasks == [*jobs[:2], WarmStart(8), *jobs[2:]]
  assert lag_language.next_task(tasks, {7}) == jobs[0]
  assert lag_language.next_task(tasks[2:], {7}) == WarmStart(8)
  assert lag_language.next_task(tasks[3:], {7}) is None
  assert lag_language.next_task(tasks[3:], {7, 8}) == jobs[2]


def test_rows_are_kept_once_and_in_order(tmp_path):
  path, lock = tmp_path / "rows.jsonl", tmp_path / "lock"
  jobs = [
    Job("mean", 3e-4, 1e-3, 16, 1),
    Job("grpo", 0.8, 1e-3, 0, 2),
    Job("grpo", None, 1e-3, 0, 2),
  ]
  for job in (*jobs, jobs[0]):
    lag_language.add_row(path, row(job, 0.25), lock)
  lag_language.add_row(path, row(jobs[0], 0.25, study=TINY), lock)
  found = lag_language.read_rows(path, STUDY)
  assert [lag_language.job_of(r) for r in found] == jobs[::-1]
  assert lag_language.score(found[0]) == 0.25
  assert [lag_language.job_of(r) for r in lag_language.read_rows(path, TINY)] == jobs[:1]


# ---------------------------------------------------------------- the decision


def study_rows(finals: dict[tuple[str, int], float]) -> list[dict]:
  """A whole study; {(label, factor): final and run-mean pass@1 at the primary lag}, else 0.5."""
  entries = [BY_LABEL[label] for label in ("grpo_wide", "cispo", "mean", "shift")]
  tuned = {"cispo": 0.45}
  rows = tuned_rows(entries, lambda job: tuned.get(job.entry, 0.4) + 0.01 * (job.rate == 1e-4))
  for job in lag_language.report_jobs(rows, entries, STUDY):
    off = job.rate != 1e-4
    reached = finals.get((job.entry, 3 if off else 1), 0.5) if job.lag == 64 else 0.5
    reached += 0.001 * job.seed * (1 + (job.entry == "shift"))
    rows.append(row(job, reached, reached))
  return rows


@pytest.mark.parametrize(
  ("finals", "verdict"),
  [
    ({}, "Refuted: above the best ratio objective in no primary outcome."),
    ({("shift", 1): 0.6}, "Held: above the best ratio objective in final pass@1 at 1 x"),
    ({("shift", 3): 0.6}, "Held in part: above the best ratio objective in final pass@1 at 3 x"),
    (
      {("cispo", 3): 0.6},
      "Refuted: above the best ratio objective in no primary outcome. Below it",
    ),
    (
      {("grpo_wide", 1): 0.9},
      "Refuted: above the best ratio objective in no",
    ),  # tuning chose cispo
  ],
)
def test_the_verdict_follows_from_the_rows(finals, verdict):
  rows = study_rows(finals)
  assert summary.best_ratio(rows, STUDY) == "cispo"
  page = summary.page(rows, STUDY, "x")
  assert verdict in page
  assert ("Below it" in page) == (("cispo", 3) in finals)
  missing = [r for r in rows if r["entry"] != "shift" or r["seed"] == 1001]
  assert "Not decided" in summary.page(missing, STUDY, "x")


def test_the_second_comparison_is_shown_once_it_is_complete():
  """All entries; a beta of 0.1 is best, which the first comparison does not try."""
  entries, finer = lag_language.ENTRIES, dataclasses.replace(STUDY, widest=5.0)
  score_of = lambda job: 0.5 - 0.1 * abs(np.log((job.value or 1) / 0.1))
  rows = tuned_rows(entries, score_of)
  rows += [row(job, 0.5, 0.5) for job in lag_language.report_jobs(rows, entries, STUDY)]
  assert not summary.is_complete(rows, finer)
  assert summary.page(rows, finer, "x").count("## Does `shift` beat") == 1
  while left := lag_language.missing(lag_language.tuning_jobs(rows, entries, finer), rows):
    rows += [row(job, score_of(job)) for job in left]
  made = lag_language.missing(lag_language.report_jobs(rows, entries, finer), rows)
  assert {job.entry for job in made} == {"copg", "oapl", "mean", "shift"}
  rows += [row(job, 0.9 + 0.01 * job.seed, 0.9 + 0.01 * job.seed) for job in made]
  assert summary.is_complete(rows, finer)
  last = lambda r: (r["entry"], r["value"], r["lag"], r["seed"]) == ("shift", 0.1, 64, 2)
  without = [r for r in rows if not last(r)]
  assert len(without) == len(rows) - 2 and not summary.is_complete(without, finer)
  page = summary.page(rows, finer, "x")
  planned, second = page.split("## Does `shift` beat")[1:]
  assert "As planned" in planned and "Refuted" in planned
  assert "finer steps" in second and "Held:" in second and "| `shift` | 0.1, " in second


def test_the_page_has_every_part():
  page = summary.page(study_rows({("shift", 1): 0.6}), STUDY, "lag")
  assert page.count("paired over 3 seeds") == 2  # of the primary lag, not of the others
  assert "| `shift` | final pass@1 | **+0.101 ± 0.002** |" in page
  assert "| `grpo_wide` | 0.4 | 0.0003 | 0.400 | 0.400 |" in page
  assert f"| `mean` | {lag_language_entries.BETAS[0]:g}, 0.0001 |" in page  # chosen
  assert "| `cispo` | 2.000 ± 0.000 |" in page  # the median of the noise


@pytest.mark.long
def test_page_and_pictures_are_written(tmp_path, capsys):
  pytest.importorskip("matplotlib")
  summary.write(study_rows({}), STUDY, tmp_path / "lag")
  assert "Refuted" in (tmp_path / "lag.md").read_text()
  assert all((tmp_path / f"lag_{kind}.png").stat().st_size > 5000 for kind in ("curves", "lags"))
  assert "lag.md" in capsys.readouterr().out


def test_differences_are_adjusted_as_one_family():
  values = [0.1, 0.3, 0.2, 0.25]
  found = paired.family({"a": values, "b": [0.1, -0.1, 0.0, 0.01]})
  assert found["a"].p == pytest.approx(2 * paired.p_value(values)) and found["a"].is_clear
  assert found["a"].mean == pytest.approx(0.2125) and not found["b"].is_clear


# ---------------------------------------------------------------- a run


@pytest.mark.long
def test_a_small_run_is_made_once_and_its_row_is_kept(tmp_path, capsys):
  """In a worker of its own, as in the study; the same run in another folder is the same."""
  job, rows = Job("shift", 3e-4, 1e-3, 2, 5), []
  for folder in (tmp_path / "a", tmp_path / "b"):
    folder.mkdir()
    path = folder / "rows.jsonl"
    workers = lag_language.Workers(1, TINY, folder, until=time.monotonic() + 200)
    read = lambda path=path: lag_language.read_rows(path, TINY)
    add = lambda row, path=path: lag_language.add_row(path, row, path.with_suffix(".lock"))
    for _ in range(2):
      lag_language.run_missing([job], workers, read, add)
    workers.close()
    rows += read()
  said = capsys.readouterr().out
  assert said.count("0 of 1 runs are there") == 2 and said.count("1 of 1 runs are there") == 2
  assert said.count("WarmStart(seed=5)") == 2
  for kept in rows:
    assert kept.pop("seconds") > 0 and len(kept["start"]) == 16
  assert rows[0] == rows[1]
  assert rows[0]["curve"]["step"] == [0, 2, 4] and len(rows[0]["curve"]["ess"]) == 2
  assert len(rows[0]["noise"]) == 4 and rows[0]["final"].keys() >= {"pass@1", "pass@2", "entropy"}


@pytest.mark.long
def test_nothing_is_begun_after_the_time(tmp_path):
  workers = lag_language.Workers(1, TINY, tmp_path, until=time.monotonic() - 1)
  assert list(workers.results([Job("grpo", None, 1e-3, 0, 1)])) == []
  workers.close()
