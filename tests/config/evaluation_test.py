"""From the flags of eval to a configuration: started anywhere, installed or not."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from offpolicy_rl.cli import flags as flags_lib
from offpolicy_rl.config import evaluation, text
from tests.conftest import ROOT


@pytest.fixture
def published(tmp_path):
  """What the settings look at of a published checkpoint."""
  folder = tmp_path / "model"
  folder.mkdir()
  (folder / "config.json").write_text("{}")
  return folder


def settings(*flags, ks=(1, 2)):
  parsed = flags_lib.parser("").parse_args(["eval", *flags])
  return evaluation.configuration(parsed, [], ks)[0]


def test_the_learners_groups_need_no_slots(published):
  config = settings(f"--checkpoint={published}", "--slots=4")
  assert (config.sampler.slots, config.evaluation.samples, config.learner.group_size) == (4, 2, 8)
  with pytest.raises(text.ConfigError, match="sampler.slots: got 4, expected at least 8"):
    settings(f"--checkpoint={published}", "--slots=4", ks=(8,))


def test_nothing_is_recorded_that_only_training_needs(published):
  parsed = flags_lib.parser("").parse_args(["eval", f"--checkpoint={published}"])
  asked = [("sampler.top_logprobs", "20")]
  assert evaluation.configuration(parsed, asked, (1,))[0].sampler.top_logprobs == 0


def test_a_run_of_another_release_has_the_keys_of_this_one(tmp_path):
  """Its weights can be measured as they are, whichever keys came or went since."""
  saved = text.base()
  saved.seed, saved.sampler.slots = 7, 64
  values = json.loads(saved.to_json())
  del values["environment"]
  values |= {"gone": {"key": 1}}
  (tmp_path / "checkpoints").mkdir()
  (tmp_path / "config.json").write_text(json.dumps(values))
  config = settings(f"--run_dir={tmp_path}")
  assert (config.seed, config.sampler.slots, config.environment.name) == (7, 64, "")
  assert text.flatten(config).keys() == text.flatten(text.base()).keys()


def test_base_is_found_from_any_directory(published, monkeypatch):
  monkeypatch.chdir(published)
  assert settings(f"--checkpoint={published}").task.max_prompt_tokens == 512


def test_what_is_installed_has_every_key(tmp_path):
  source = tmp_path / "source"
  for name in ("offpolicy_rl", "configs"):
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("setup.py", "README.md"):
    shutil.copy(ROOT / name, source)
  built = tmp_path / "site-packages"
  build = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={built}"]
  subprocess.run(build, cwd=source, check=True, capture_output=True)
  program = (
    "from offpolicy_rl import config; import types; found = config.base(); config.validate(found); "
    "print(config.__file__, len(config.flatten(found)), types.__file__)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(built)},
    check=True,
    capture_output=True,
    text=True,
  )
  file, number, _ = done.stdout.split()
  assert file.startswith(str(built))
  assert int(number) == len(text.flatten(text.base()))
