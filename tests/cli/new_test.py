"""`offpolicy-rl new`: what it writes runs as it is."""

import sys

import pytest

from offpolicy_rl.cli import main
from offpolicy_rl.tasks import verifiers
from tests.run_system import run_local, train_rows


@pytest.fixture
def made(tmp_path, monkeypatch, capsys):
  """What `new digits` printed, in the directory where it wrote."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  assert main.main(["new", "digits"]) == 0
  yield capsys.readouterr().out
  for name in ("digits.verifier", "digits.task", "digits"):
    sys.modules.pop(name, None)


def test_the_files_are_short_and_the_commands_follow(made, tmp_path):
  files = sorted(tmp_path.glob("digits/*.py"))
  assert [file.name for file in files] == ["digits.py", "task.py", "verifier.py"]
  for file in files:
    assert len(file.read_text().splitlines()) < 30 and "NAME" not in file.read_text()
  assert "offpolicy-rl check --config=digits/digits.py" in made
  assert "offpolicy-rl local --config=digits/digits.py" in made


def test_the_verifier_gives_part_of_the_marks(made):
  judge = verifiers.resolve("digits.verifier:in_place")
  assert [judge(text, '"321"') for text in ("321", "320", "", "3210")] == [1.0, 1 / 3, 0.0, 0.375]


@pytest.mark.parametrize("name", ["json", "class", "a-b", "../up", "a b", "Ähre", "", "1a"])
def test_names_that_can_not_be_a_module_are_refused(name, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert main.main(["new", name]) == 2
  assert "NAME: " in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_nothing_is_overwritten(made, tmp_path, capsys):
  (tmp_path / "digits" / "task.py").write_text("mine")
  (tmp_path / "notes").touch()
  for name in ("digits", "notes"):
    assert main.main(["new", name]) == 2
    assert f"NAME: {name} exists, expected a new name" in capsys.readouterr().err
  assert (tmp_path / "digits" / "task.py").read_text() == "mine"


@pytest.mark.long
def test_it_is_checked_and_trained_as_it_is(made, tmp_path, capsys):
  assert main.main(["check", "--config=digits/digits.py"]) == 0
  assert "A run can start." in capsys.readouterr().out
  few = ["--config.learner.steps=2", "--config.warm_start.steps=20"]
  run_local("--config=digits/digits.py", "--run_dir=run", *few, cwd=tmp_path)
  assert len(train_rows(tmp_path / "run")) == 2
