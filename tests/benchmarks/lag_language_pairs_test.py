"""The deciding runs once more: which ones, from which warm start, and what is compared then."""

import numpy as np
import pytest

from benchmarks import lag_language, lag_language_pairs, lag_language_run
from benchmarks import lag_language_summary as summary
from tests.benchmarks.lag_language_test import STUDY, study_rows


@pytest.fixture
def rows():
  return study_rows({})


@pytest.fixture
def jobs(rows):
  return lag_language_pairs.jobs(rows, STUDY)


def with_starts(rows, jobs, start_of) -> list[dict]:
  """The rows, those of the jobs with the start that a function says."""
  begun = lambda row: {"start": start_of(lag_language.job_of(row))}
  return [row | begun(row) if lag_language.job_of(row) in jobs else row for row in rows]


def test_what_enters_a_primary_difference_is_made_again(jobs):
  assert {job.entry for job in jobs} == {"cispo", "mean", "shift"}  # those that are tuned here
  assert {job.lag for job in jobs} == {64} and len(jobs) == len(set(jobs)) == 3 * 2 * 3
  assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)


def test_a_seed_is_done_once_all_its_runs_share_their_start(rows, jobs):
  here = lambda seed: "here"
  assert lag_language_pairs.left(jobs, rows, here) == jobs
  elsewhere = with_starts(rows, jobs, lambda job: "other" if job.seed == 0 else None)
  assert lag_language_pairs.left(jobs, elsewhere, here) == [job for job in jobs if job.seed]
  first = jobs[0]
  begun = with_starts(rows, jobs, lambda job: "other" if job == first else None)
  assert lag_language_pairs.left(jobs, begun, here) == jobs, "another machine begins anew"
  begun = with_starts(rows, jobs, lambda job: "here" if job == first else None)
  assert lag_language_pairs.left(jobs, begun, here) == jobs[1:]
  assert lag_language_pairs.left(jobs, begun, lambda seed: None) == jobs, "its start is gone"


def test_only_pairs_from_one_start_are_compared(rows, jobs):
  mixed = with_starts(rows, jobs, lambda job: "a" if job.seed or job.entry == "shift" else "b")
  found = summary.reports(mixed, STUDY)
  pairs = summary.from_one_start(found, "cispo", "shift", 1)
  assert [mine["seed"] for _, mine in pairs] == [1, 2]
  assert {mine["entry"] for _, mine in pairs} == {"shift"}
  page = summary.page(mixed, STUDY, "x")
  assert page.count("paired over 2 to 3 seeds, of one warm start each") == 2
  assert "seeds, whose warm starts may differ" in summary.page(rows, STUDY, "x")


def test_the_digest_is_that_of_the_parameters(tmp_path):
  digest = lag_language_run.digest
  arrays = {"a": np.arange(3.0), "b": np.ones((2, 2))}
  for name, kept in (
    ("one", arrays),
    ("same", dict(reversed(arrays.items()))),
    ("other", arrays | {"a": np.arange(3.0) + 1e-9}),
  ):
    np.savez(tmp_path / f"{name}.npz", **kept)
  one, same, other = (digest(tmp_path / f"{name}.npz") for name in ("one", "same", "other"))
  assert one == same != other and len(one) == 16
  assert digest(tmp_path / "none.npz") is None
