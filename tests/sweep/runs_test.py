"""From a sweep file to runs: configurations, names, command lines, and what is refused."""

import re
import shlex

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import flags as flags_lib
from offpolicy_rl.cli import main, training
from offpolicy_rl.sweep import runs
from tests.conftest import ROOT
from tests.sweep.made import CARD, expand, sweep_file


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
  assert found.runs[2].values["objective.beta"] is None and found.base["lag.max_lag"] == 8
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
    f"--config={CARD}",
    f"--sweep={sweep_file(tmp_path, returned)}",
    f"--out={tmp_path}/out",
    "--config.learner.steps=5",
  ]
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
    parsed = flags_lib.parser("").parse_args([w for w in words if "--config." not in w])
    pairs = [flags_lib.key_and_text(w) for w in words if "--config." in w]
    config, said = training.configuration(parsed, pairs)
    assert config_lib.flatten(config) == run.values
    assert parsed.role == "learner" and not said
    assert parsed.run_dir == str(tmp_path / "a b" / run.name)
  assert not (tmp_path / "a b").exists()
