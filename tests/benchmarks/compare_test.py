"""A figure outside the noise of the stored runs is told, in both directions, and ends with 1."""

import importlib
import json
import pathlib
import sys

import pytest

from benchmarks import compare


@pytest.mark.parametrize(
  ("measured", "within"), [(1.0, True), (0.69, True), (0.67, False), (1.37, True), (1.39, False)]
)
def test_the_band_is_the_spread_of_the_stored_runs_and_a_slack(measured, within):
  row = compare.compare([0.8, 1.0, 1.2], "x", measured)
  assert (row.low, row.high) == pytest.approx((0.68, 1.38)) and row.ratio == measured
  assert row.within == within


def test_the_median_of_the_runs_counts_and_unmatched_figures_are_named():
  runs = [{"a": 1.0, "new": 1.0}, {"a": 9.0, "new": 1.0}, {"a": 1.1, "new": 1.0}]
  [row], unmatched = compare.compare_all({"a": [2.0, 2.0], "old": [1.0]}, runs)
  assert (row.name, row.measured, row.ratio) == ("a", 1.1, 0.55) and not row.within
  assert unmatched == ["new", "old"]


@pytest.mark.parametrize(("measured", "code"), [(0.5, 0), (0.9, 1), (0.1, 1)])
def test_the_exit_code_says_whether_something_changed(
  tmp_path, monkeypatch, capsys, measured, code
):
  stored = tmp_path / "small.json"
  stored.write_text(
    json.dumps({"machine": "m", "figures": {"stream: a": [0.5], "sampler: b": [1]}})
  )
  monkeypatch.setattr(compare, "STORED", stored)
  monkeypatch.setattr(compare, "measure", lambda name: {f"{name}: a": measured})
  monkeypatch.setattr(sys, "argv", ["compare", "stream", "--runs=2"])
  assert compare.main() == code
  assert ("OUTSIDE" in capsys.readouterr().out) == bool(code)
  monkeypatch.setattr(sys, "argv", ["compare", "stream", "--runs=2", "--store"])
  assert compare.main() == 0  # others stay
  assert json.loads(stored.read_text())["figures"] == {
    "sampler: b": [1],
    "stream: a": [measured] * 2,
  }


FILES = sorted(pathlib.Path(compare.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_every_benchmark_can_be_imported_and_says_how_it_is_run(name):
  module = importlib.import_module(f"benchmarks.{name}")
  assert module.__doc__ or name == "__init__"
  assert name not in compare.NAMES or callable(module.small)


def test_every_benchmark_that_is_compared_has_a_small_size_and_stored_figures():
  known = {name.partition(":")[0] for name in json.loads(compare.STORED.read_text())["figures"]}
  assert known == set(compare.NAMES)
