"""Sweeps: from a file to runs, which of them are made, and what is said about them."""

import fcntl
import io
import json
import pathlib
import re
import shlex
import signal
import sys
import threading

import pytest
from rich.console import Console

from offpolicy_rl import arguments as arguments_lib
from offpolicy_rl import config as config_lib
from offpolicy_rl import main, metrics, sweep
from offpolicy_rl.config import ConfigError
from offpolicy_rl.sweep import running, runs, summary
from offpolicy_rl.sweep.screen import Screen
from tests.conftest import ROOT
from tests.system import processes, train_rows, wait_for

CARD = str(ROOT / "configs" / "test.py")


def sweep_file(folder: pathlib.Path, returned: str) -> str:
  path = folder / "mine.py"
  path.write_text(f"from offpolicy_rl import sweep\n\ndef get_sweep():\n  return {returned}\n")
  return str(path)


def expand(folder, returned: str, assignments=()) -> runs.Sweep:
  return runs.expand(sweep_file(folder, returned), CARD, list(assignments))


# ---------------------------------------------------------------- lists of settings


def test_grids_columns_and_products():
  assert sweep.grid({"a": [1, 2], "seed": range(2)}) == [
    {"a": 1, "seed": 0}, {"a": 1, "seed": 1}, {"a": 2, "seed": 0}, {"a": 2, "seed": 1},
  ]  # fmt: skip
  assert sweep.zipped({"a": [1, 2], "b": ["x", "y"]}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
  mixed = sweep.product([{"a": 1}, {"a": 2, "b": 3}], sweep.seeds(2))
  assert mixed == [
    {"a": 1, "seed": 0}, {"a": 1, "seed": 1},
    {"a": 2, "b": 3, "seed": 0}, {"a": 2, "b": 3, "seed": 1},
  ]  # fmt: skip


def test_draws_are_repeatable_and_more_of_them_keep_the_first():
  axes = {
    "learner.learning_rate": sweep.log_uniform(1e-4, 1e-2),
    "objective.beta": sweep.uniform(0.2, 0.3),
    "objective.name": sweep.choice("grpo", "tis"),
  }
  found = sweep.draws(200, axes, seed=3)
  assert found[:5] == sweep.draws(5, axes, seed=3) != sweep.draws(5, axes, seed=4)
  alone = sweep.draws(5, {"objective.beta": axes["objective.beta"]}, seed=3)
  assert [row["objective.beta"] for row in alone] == [row["objective.beta"] for row in found[:5]]
  rates = [row["learner.learning_rate"] for row in found]
  assert all(1e-4 <= rate <= 1e-2 and float(f"{rate:.4g}") == rate for rate in rates)
  assert 70 < sum(rate < 1e-3 for rate in rates) < 130  # half of the draws in each decade
  assert all(0.2 <= row["objective.beta"] <= 0.3 for row in found)
  assert 70 < sum(row["objective.name"] == "tis" for row in found) < 130


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: sweep.grid({"objective.name": "grpo"}), "objective.name: got 'grpo', expected a list"),
    (lambda: sweep.grid({"seed": 3}), "sweep.grid: seed: got 3, expected a list"),
    (lambda: sweep.zipped({"a": [1], "b": [1, 2]}), "'a': 1, 'b': 2} values, expected as many"),
    (lambda: sweep.product(sweep.seeds(2), sweep.seeds(2)), "seed is in two of the parts"),
    (lambda: sweep.uniform(2, 1), "sweep.uniform: got 2, 1, expected low < high"),
    (lambda: sweep.log_uniform(0, 1), "sweep.log_uniform: got 0, 1, expected 0 < low < high"),
    (lambda: sweep.choice(), "sweep.choice: got no values"),
    (lambda: sweep.draws(2, {"seed": [1, 2]}), r"sweep.draws: seed: got \[1, 2\], expected unif"),
  ],
)
def test_axes_that_make_no_sense_are_refused(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


# ---------------------------------------------------------------- from a file to runs


def test_a_sweep_becomes_named_runs_with_whole_configurations(tmp_path):
  returned = """sweep.product([{"objective.name": "oapl", "objective.beta": 1}, {"objective.name":
    "grpo"}], sweep.grid({"lag.mode": ["fixed"], "lag.max_lag": [0, 16]}))"""
  found = expand(tmp_path, returned, [("learner.steps", "7")])
  assert [run.name for run in found.runs] == [
    "000-objective=oapl,objective.beta=1.0,lag.max_lag=0",
    "001-objective=oapl,objective.beta=1.0,lag.max_lag=16",
    "002-objective=grpo,lag.max_lag=0",
    "003-objective=grpo,lag.max_lag=16",
  ]  # what all runs have in common is not in their names
  values = found.runs[1].values
  assert values["objective.beta"] == 1.0 and type(values["objective.beta"]) is float
  assert (values["lag.mode"], values["lag.max_lag"], values["learner.steps"]) == ("fixed", 16, 7)
  assert values["learner.prompts_per_step"] == 8  # the card's
  assert found.runs[2].values["objective.beta"] == 0.5 and found.base["lag.max_lag"] == 8
  assert runs.varying(found.runs) == ["objective.name", "objective.beta", "lag.max_lag"]


def test_names_are_directories_and_differ_whatever_the_values_are(tmp_path):
  settings = [{"task.prompt": "{question} " + text + "/.. y" * 60} for text in "ab"]
  first, second = (run.name for run in expand(tmp_path, repr(settings)).runs)
  assert first[:4] == "000-" and second[:4] == "001-" and first != second
  assert len(first) <= 200 and "/" not in first and " " not in first


@pytest.mark.parametrize(
  ("returned", "message"),
  [
    (
      '[{"seed": 0}, {"lag.max_lagg": 4}]',
      r"run 1 \(lag.max_lagg=4\): .*lag.max_lagg: unknown key",
    ),
    ('[{"lag.max_lag": 1.5}]', "run 0 .*lag.max_lag: got '1.5', expected int"),
    ('[{"lag.max_lag": -1}]', "run 0 .*lag.max_lag: got -1, expected at least 0"),
    ('[{"objective.name": "gpro"}]', "run 0 .*objective.name: got 'gpro', expected one of"),
    ('[{"lag.max_lag": [1, 2]}]', r"run 0 .*lag.max_lag: got \[1, 2\], expected a single value"),
    ('[{"seed": 1}, {"seed": 2}, {"seed": 1}]', "run 2 .*same configuration as run 0"),
    ('[{"seed": 1}, {"seed": 1, "lag.max_lag": 8}]', "run 1 .*same configuration as run 0"),
    ('[{"learner.steps": 3}]', "--config.learner.steps: the sweep sets it"),
    ("[]", "get_sweep returned .*expected a list of settings"),
    ('{"seed": [1]}', "get_sweep returned .*expected a list of settings"),
    ("[3]", "run 0: got 3, expected a dict"),
  ],
)
def test_mistakes_are_refused_by_name_before_anything_starts(tmp_path, capsys, returned, message):
  arguments = [
    f"--config={CARD}", f"--sweep={sweep_file(tmp_path, returned)}", f"--out={tmp_path}/out",
    "--config.learner.steps=5",
  ]  # fmt: skip
  assert main.main(["sweep", *arguments]) == 2
  error = capsys.readouterr().err
  assert re.search(message, error), error
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--sweep=configs/sweeps/tiny.py"], "--config: missing"),
    (["--config=configs/test.py"], "--sweep: missing"),
    (["--config=configs/test.py", "--sweep=nowhere.py"], "--sweep: no file nowhere.py"),
    (["--config=configs/test.py", "--sweep=configs/test.py"], "has no function get_sweep"),
    (["--summarize"], "--out: missing"),
    (["--summarize", "--out=nowhere"], "--out: no file nowhere/sweep.json"),
    (["--parallel=0"], "--parallel: got 0, expected at least 1"),
    (
      ["--config=configs/test.py", "--sweep=configs/sweeps/tiny.py", "--x=lag.mode"],
      "--x: got 'lag.mode', expected a key that differs between runs: objective.name, lag.max_lag",
    ),
  ],
)
def test_flags_that_make_no_sense_are_refused(flags, message, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  assert main.main(["sweep", *flags]) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.py")), ids=str)
def test_every_sweep_there_is_fits_the_small_card(path):
  assert len(runs.expand(str(path), CARD, []).runs) >= 4


def test_a_printed_command_line_makes_the_same_configuration(tmp_path, capsys):
  prompt = 'It\'s {question} "$HOME" `x` \n;'
  returned = f"""sweep.product([{{"task.prompt": {prompt!r}}}, {{"objective.beta": None}}],
    [{{"learner.learning_rate": 1e-05}}], sweep.seeds(2))"""
  flags = [f"--config={CARD}", f"--sweep={sweep_file(tmp_path, returned)}", f"--out={tmp_path}/a b"]
  assert main.main(["sweep", *flags, "--print=learner", "--config.lag.max_lag=3"]) == 0
  lines = shlex.split(capsys.readouterr().out.replace("\noffpolicy-rl", " offpolicy-rl"))
  starts = [i for i, word in enumerate(lines) if word == "offpolicy-rl"] + [len(lines)]
  wanted = expand(tmp_path, returned, [("lag.max_lag", "3")]).runs
  for run, begin, end in zip(wanted, starts[:-1], starts[1:], strict=True):
    words = lines[begin + 1 : end]
    parsed = arguments_lib.parser("").parse_args([w for w in words if "--config." not in w])
    config, run_dir = main._configuration(parsed, [w for w in words if "--config." in w])
    assert config_lib.flatten(config) == run.values
    assert parsed.role == "learner" and run_dir == tmp_path / "a b" / run.name
  assert not (tmp_path / "a b").exists()


# ---------------------------------------------------------------- which runs are made


def finish(run_dir: pathlib.Path, *, steps: int = 40, score: float = 0.5) -> None:
  """A run directory as far as a sweep looks into it."""
  rows = metrics.JsonLines(run_dir / metrics.FILE)
  times = {"seconds/waiting": 1.0, "seconds/step": 0.5, "seconds/publishing": 0.5}
  for step in range(steps):
    row = {"reward": 0.5, "entropy": 10.0 * (step < 20), **times}
    rows.append({"kind": metrics.TRAIN, "step": step, **row})
  for phase, version, value in (
    ("before warm start", -1, 0.0),
    ("after warm start", 0, score / 2),
    ("after", steps, score),
  ):
    row = {"phase": phase, "version": version, "heldout/pass@1": value}
    rows.append({"kind": metrics.HELDOUT, "step": max(version, 0), **row})
  rows.close()


class Stub:
  """Stands for `running.run_process`: what was asked of it, and what happens to each run."""

  def __init__(self, **fates):
    self.asked, self.at_once, self._fates, self._now = [], 0, fates, 0
    self._lock = threading.Lock()

  def __call__(self, line, run_dir, stop):
    with self._lock:
      self.asked.append((run_dir.name[:3], "--resume" in line))
      self._now += 1
      self.at_once = max(self.at_once, self._now)
    fate = self._fates.get(f"run{run_dir.name[:3]}", "finish")
    if fate == "wait":
      assert stop.wait(30)
    if fate == "finish":
      threading.Event().wait(0.02)  # long enough for another to begin
      finish(run_dir)
    (run_dir / running.LOG).write_text("first\nlast words\n")
    with self._lock:
      self._now -= 1
    return fate if isinstance(fate, int) else 0


def execute(made: runs.Sweep, out, stub, *, stop=None, parallel=2, **flags):
  """(statuses in order, what the screen said)."""
  text = io.StringIO()
  screen = Screen(parallel, Console(file=text, width=200, highlight=False))
  out.mkdir(exist_ok=True)
  runs.write(made, out)
  found = running.execute(
    made, out, parallel=parallel, stop=stop or threading.Event(), screen=screen, run_one=stub,
    **flags,
  )  # fmt: skip
  return [found[run.name] for run in made.runs], text.getvalue()


def test_finished_runs_are_skipped_and_failed_ones_wait_to_be_retried(tmp_path):
  made = expand(tmp_path, "sweep.seeds(4)")
  out = tmp_path / "out"
  first = Stub(run001=7, run002=-9)
  found, said = execute(made, out, first)
  assert found == ["finished", "failed", "failed", "finished"] and first.at_once == 2
  assert sorted(first.asked) == [("000", False), ("001", False), ("002", False), ("003", False)]
  assert "4 runs: 4 waiting; 4 to do, 2 at a time" in said
  assert f"failed in 0:00  001-seed=1 ({out}/001-seed=1/log.txt)" in said
  page = summary.write(made, out)
  assert "`001-seed=1`: exit code 7 at 20" in page and "    last words" in page
  assert "`002-seed=2`: killed by SIGKILL at 20" in page

  again = Stub()
  assert execute(made, out, again)[0] == found and again.asked == []
  found, said = execute(made, out, again, retry_failed=True)
  assert found == ["finished"] * 4 and sorted(again.asked) == [("001", True), ("002", True)]
  assert "2 finished, 2 failed; 2 to do" in said and "4 finished" in said
  assert "Failed" not in summary.write(made, out)


def test_stopping_ends_what_runs_begins_nothing_more_and_goes_on_later(tmp_path):
  made = expand(tmp_path, "sweep.seeds(5)")
  stop, stub = threading.Event(), Stub(run001="wait", run002="wait")
  timer = threading.Timer(0.5, stop.set)
  timer.start()
  found, said = execute(made, tmp_path / "out", stub, stop=stop)
  assert found == ["finished", "interrupted", "interrupted", "waiting", "waiting"]
  assert said.count("ending the runs at work") == 1 and "003" not in said
  stub = Stub()
  assert execute(made, tmp_path / "out", stub)[0] == ["finished"] * 5
  assert sorted(stub.asked) == [("001", True), ("002", True), ("003", False), ("004", False)]


def test_a_run_that_breaks_the_sweep_ends_the_others_in_order(tmp_path):
  made = expand(tmp_path, "sweep.seeds(3)")
  ended = []

  def stub(line, run_dir, stop):
    if run_dir.name.startswith("000"):
      raise OSError("disk full")
    ended.append(stop.wait(30))
    return 0

  with pytest.raises(OSError, match="disk full"):
    execute(made, tmp_path / "out", stub)
  assert ended and all(ended)


def test_a_run_at_work_and_a_second_command_are_noticed(tmp_path):
  made = expand(tmp_path, "sweep.seeds(2)")
  out = tmp_path / "out"
  execute(made, out, Stub(run001=1))
  with (out / made.runs[1].name / running.LOG).open("ab") as log:
    fcntl.flock(log, fcntl.LOCK_SH)
    assert running.status(made.runs[1], out) == "running"
    with pytest.raises(ConfigError, match="001-seed=1: is at work already"):
      execute(made, out, Stub())
  assert running.status(made.runs[1], out) == "failed"
  another = pytest.raises(ConfigError, match="another sweep command is at work")
  with running.alone(out), another, running.alone(out):
    pass


def test_runs_may_be_added_but_not_changed(tmp_path):
  out = tmp_path / "out"
  made = expand(tmp_path, 'sweep.grid({"lag.max_lag": [0, 16], "seed": [0]})')
  execute(made, out, Stub())
  wider = (
    'sweep.grid({"lag.max_lag": [0, 4, 16], "seed": [0, 1], "objective.name": ["beta_shift"]})'
  )
  more = runs.reconcile(expand(tmp_path, wider), out)
  assert [run.name for run in more.runs] == [
    "000-lag.max_lag=0", "002-lag.max_lag=0,seed=1", "003-lag.max_lag=4,seed=0",
    "004-lag.max_lag=4,seed=1", "001-lag.max_lag=16", "005-lag.max_lag=16,seed=1",
  ]  # fmt: skip
  stub = Stub()
  assert execute(more, out, stub)[0] == ["finished"] * 6
  assert [name for name, _ in sorted(stub.asked)] == ["002", "003", "004", "005"]
  assert runs.read(out).runs == more.runs and runs.reconcile(more, out) == more
  for returned, assignments, message in (
    ('[{"lag.max_lag": 0}]', [], "run 002-.* is not in this one; the closest differs in seed: 1 t"),
    (wider, [("learner.steps", "80")], "run 000-.* differs in learner.steps: 40 then, 80 now"),
  ):
    with pytest.raises(ConfigError, match=message):
      runs.reconcile(expand(tmp_path, returned, assignments), out)


# ---------------------------------------------------------------- what is said about them


def swept(tmp_path, returned: str, score=lambda values: 0.5) -> tuple[runs.Sweep, pathlib.Path]:
  """A sweep whose runs are finished, with a score of their own."""
  made, out = expand(tmp_path, returned), tmp_path / "out"
  out.mkdir()
  runs.write(made, out)
  for run in made.runs:
    (out / run.name).mkdir()
    finish(out / run.name, score=score(run.values))
  return made, out


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
  assert "![scores](scores.png)" in (out / "summary.md").read_text()
  assert (out / "scores.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
  ("returned", "x", "series", "axes"),
  [
    (LAGS, None, None, ("lag.max_lag", ["objective.name"], ["seed"])),
    (LAGS, "seed", "lag.max_lag", ("seed", ["lag.max_lag"], ["objective.name", "objective.beta"])),
    (LAGS, "objective.name", None, ("objective.name", ["lag.max_lag"], ["seed"])),
    ("sweep.seeds(3)", None, None, ("seed", [], [])),
    (
      """sweep.draws(9, {"objective.beta": sweep.uniform(0.1, 1), "learner.learning_rate":
        sweep.log_uniform(1e-4, 1e-2), "objective.name": sweep.choice("tis", "grpo")})""",
      None, None, ("objective.beta", ["objective.name"], []),
    ),
  ],
)  # fmt: skip
def test_the_axes_of_the_picture_come_from_the_sweep(tmp_path, returned, x, series, axes):
  rows = summary.collect(*swept(tmp_path, returned))
  assert summary.chosen_axes(rows, x, series) == axes


def test_the_picture_has_means_dots_and_intervals_where_they_belong(tmp_path):
  pytest.importorskip("matplotlib")
  from offpolicy_rl.sweep import picture

  rows = summary.collect(*swept(tmp_path, LAGS, lag_score))
  figure = picture.compose(rows, *summary.chosen_axes(rows, None, None))
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
  monkeypatch.delitem(sys.modules, "offpolicy_rl.sweep.picture", raising=False)
  monkeypatch.delattr(sweep, "picture", raising=False)
  assert "pip install 'offpolicy-rl[bench]'" in summary.write(made, out)
  assert not (out / "scores.png").exists()


def test_a_line_says_how_far_a_run_is(tmp_path):
  [run] = expand(tmp_path, '[{"lag.max_lag": 4}]').runs
  screen = Screen(1, Console(file=io.StringIO()))
  screen.begin({run.name: "waiting"}, [run])
  screen.started(run)
  assert screen.line(run) == "starting        held-out   -    000"
  finish(tmp_path, steps=3)
  screen.show({run.name: running.newest(tmp_path)})
  assert screen.line(run) == "step 3/40       held-out 0.500  reward 0.500  entropy 10.000  000"


# ---------------------------------------------------------------- real runs


def test_a_real_run_is_interrupted_and_goes_on_beside_another(tmp_path):
  out = tmp_path / "out"
  small = {
    "model.num_layers": 1, "warm_start.steps": 0, "learner.steps": 200, "evaluation.every": 0,
    "evaluation.problems": 1, "evaluation.samples": 1, "checkpoint.every": 1000,
  }  # fmt: skip
  flags = ["sweep", f"--config={CARD}", f"--sweep={sweep_file(tmp_path, 'sweep.seeds(2)')}"]
  flags += [f"--out={out}", *(f"--config.{key}={value}" for key, value in small.items())]
  fast = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # of compilation
  first, second = out / "000-seed=0", out / "001-seed=1"
  with processes() as launch:
    begun = launch(*flags, **fast)
    wait_for(lambda: len(train_rows(first)) >= 3, 60, "3 steps")
    begun.send_signal(signal.SIGINT)
    output, _ = begun.communicate(timeout=60)
    assert begun.returncode == 130, output
    assert "1 interrupted, 1 waiting" in output and "the same command goes on" in output
    steps = len(train_rows(first))
    assert steps < 200 and (first / "checkpoints" / "steps" / str(steps)).exists()
    more = launch(*flags, "--parallel=2", **fast)
    output, _ = more.communicate(timeout=120)
  assert more.returncode == 0, output
  assert "1 interrupted, 1 waiting; 2 to do, 2 at a time" in output and "2 finished" in output
  for run_dir in (first, second):
    assert [row["step"] for row in train_rows(run_dir)] == list(range(200))
    assert "Traceback" not in (run_dir / "log.txt").read_text()
  assert "--resume" in (first / "log.txt").read_text().split(f"stopped after step {steps}")[1]
  found = json.loads((out / "summary.json").read_text())
  assert [run["status"] for run in found["runs"]] == ["finished", "finished"]
