"""Tables, pictures and lines about the runs of a sweep."""

import io
import json
import sys

import pytest
from rich.console import Console

from offpolicy_rl.observe import metrics
from offpolicy_rl.sweep import picture, results, summary
from offpolicy_rl.sweep.screen import Screen
from tests.sweep.made import expand, finish, swept

LAGS = """sweep.product(
  [{"objective.name": "oapl", "objective.beta": 1.0}, {"objective.name": "tis"}],
  sweep.grid({"lag.max_lag": [0, 64]}), sweep.seeds(3))"""


def lag_score(values) -> float:
  return 0.8 - 0.1 * (values["lag.max_lag"] == 64) + 0.1 * (values["seed"] - 1)


def test_the_summary_has_every_run_and_means_over_seeds(tmp_path):
  made, out = swept(tmp_path, LAGS, lag_score)
  (out / made.runs[4].name / metrics.FILE).unlink()
  page = summary.write(made, out)
  found = json.loads((out / "summary.json").read_text())
  assert found["runs"][0] == {
    "name": "000-objective=oapl,objective.beta=1.0,lag.max_lag=0,seed=0",
    "status": "finished",
    "settings": {"objective.name": "oapl", "objective.beta": 1.0, "lag.max_lag": 0, "seed": 0},
    "steps": 40,
    "final": pytest.approx(0.7),
    "mean": pytest.approx(0.525),
    "entropy": 0.0,  # of the last 20 steps
    "steps_per_hour": pytest.approx(1800.0),
  }
  assert (found["runs"][4]["status"], found["runs"][4]["final"]) == ("interrupted", None)
  # Three seeds 0.7, 0.8, 0.9: 4.303 standard errors of 0.1 / sqrt(3).
  assert found["over_seeds"][0]["final"] == pytest.approx([0.8, 0.2484], abs=1e-4)
  assert [group["runs"] for group in found["over_seeds"]] == [3, 2, 3, 3]
  assert "| oapl      | 1.0            | 0           | 3    | 0.800 ± 0.248 |" in page
  assert "interrupted, 0 steps" in page
  written = (out / "summary.md").read_text(encoding="utf-8")
  assert "![scores](scores.png)" in written and "0.800 ± 0.248" in written
  assert (out / "scores.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
  ("returned", "x", "series", "axes"),
  [
    (LAGS, None, None, ("lag.max_lag", ["objective.name"], ["seed"])),
    (LAGS, "seed", "lag.max_lag", ("seed", ["lag.max_lag"], ["objective.name", "objective.beta"])),
    (LAGS, "objective.name", None, ("objective.name", ["lag.max_lag"], ["seed"])),
    (
      LAGS,
      None,
      "objective.name,objective.beta",
      ("lag.max_lag", ["objective.name", "objective.beta"], ["seed"]),
    ),
    ("sweep.seeds(3)", None, None, ("seed", [], [])),
    (
      """sweep.draws(9, {"objective.beta": sweep.uniform(0.1, 1), "learner.learning_rate":
        sweep.log_uniform(1e-4, 1e-2), "objective.name": sweep.choice("tis", "grpo")})""",
      None,
      None,
      ("objective.beta", ["objective.name"], []),
    ),
  ],
)
def test_the_axes_of_the_picture_come_from_the_sweep(tmp_path, returned, x, series, axes):
  rows = results.collect(*swept(tmp_path, returned))
  assert results.chosen_axes(rows, x, series) == axes


def test_the_picture_has_means_dots_and_intervals_where_they_belong(tmp_path):
  pytest.importorskip("matplotlib")
  rows = results.collect(*swept(tmp_path, LAGS, lag_score))
  figure = picture.draw(rows, *results.chosen_axes(rows, None, None))
  final = figure.axes[0]
  assert [label.get_text() for label in final.get_xticklabels()] == ["0", "64"]
  means = {line.get_label(): line for line in final.lines if line.get_label() in ("oapl", "tis")}
  assert list(means["oapl"].get_ydata()) == pytest.approx([0.8, 0.7])
  assert means["oapl"].get_xdata()[0] < 0 < means["tis"].get_xdata()[0]  # beside each other
  low, high = final.containers[0].lines[2][0].get_segments()[0][:, 1]
  assert (low, high) == pytest.approx((0.8 - 0.2484, 0.8 + 0.2484), abs=1e-4)
  assert "means over seed" in figure._suptitle.get_text()


def test_without_matplotlib_the_summary_says_what_to_install(tmp_path, monkeypatch):
  made, out = swept(tmp_path, "sweep.seeds(2)")
  monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
  assert "pip install 'offpolicy-rl[bench]'" in summary.write(made, out)
  assert not (out / "scores.png").exists()


def test_a_line_says_how_far_a_run_is(tmp_path):
  [run] = expand(tmp_path, '[{"lag.max_lag": 4}]').runs
  screen = Screen(1, Console(file=io.StringIO()))
  assert screen.line(run, []) == "starting  000"
  finish(tmp_path, steps=3)
  assert screen.line(run, metrics.last_rows(tmp_path)) == (
    "step 3/40  left 1:14  reward 0.500  held-out 0.500  entropy 10.000  lag -  learner tok/s -  "
    "sampler tok/s -  000"
  )
