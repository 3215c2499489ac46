"""The adapters with the packages themselves; what they do without them.

The packages are in an environment of their own: make .venv-adapters/.installed
"""

import importlib.util
import os
import subprocess

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.tasks import apart, catalog
from tests.conftest import ROOT

PYTHON = ROOT / ".venv-adapters" / "bin" / "python"
INSTALLED = (ROOT / ".venv-adapters" / ".installed").exists()
NAMES = {
  "openenv": "openenv:http://127.0.0.1:9",
  "textarena": "textarena:GuessTheNumber-v0",
  "verifiers": "verifiers:textarena",
}
KINDS = list(NAMES)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(
  not INSTALLED, reason="the adapted packages are missing: make .venv-adapters/.installed"
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_package_itself(kind, tmp_path):
  path = f"{ROOT}:{ROOT}/.venv-adapters/verifiers" if kind == "verifiers" else str(ROOT)
  cases = f"tests/environments/adapters/{kind}_cases.py"
  options = ["-m", "", "-n", "0", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'cases'}"]
  done = subprocess.run(
    [PYTHON, "-m", "pytest", cases, *options],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": path},
    capture_output=True,
    text=True,
    timeout=850,
  )
  assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-5000:] + done.stderr[-2000:]


def config_of(task: str, **others):
  config = config_lib.base()
  config.task.name = task
  config.update_from_flattened_dict({key.replace("__", "."): v for key, v in others.items()})
  return config


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_brings_its_environment(kind):
  config = config_of(NAMES[kind])
  config_lib.validate(config)
  [name] = config_lib.environments(config)
  assert name.startswith(f"offpolicy_rl.environments.{kind}:")
  config.environment.name = "module:Own"
  assert config_lib.environments(config) == {"module:Own": "environment.name"}


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"task__verifier": "exact"}, r"task\.verifier: got 'exact', expected '' with an environment"),
    ({"task__name": "textarena:"}, "task.name: got 'textarena:', expected textarena:NAME"),
    ({"task__name": "openenv:localhost"}, "task.name: got .*, expected openenv:http://HOST:PORT"),
    ({"task__options": "[1]"}, r"task.options: got '\[1\]', expected a JSON object"),
    (
      {
        "task__name": "mixture",
        "task__mixture": '{"sums": 1, "textarena:2048-v0": {"rate": 1, "verifier": "exact"}}',
      },
      "task.mixture: textarena:2048-v0: verifier: got 'exact', expected '' with an environment",
    ),
  ],
)
def test_what_does_not_go_with_an_environment(changed, message):
  config = config_of("textarena:GuessTheNumber-v0", **changed)
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.validate(config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_that_is_missing_is_named(kind, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  task = catalog.select(config_of(NAMES[kind]).task).tasks[0]
  with pytest.raises(catalog.TaskError, match=rf"pip install offpolicy-rl\[{kind}\]"):
    task.check()


def test_a_call_apart_returns_or_says_why():
  assert apart.call(os.path.join, "a", "b") == "a/b"
  with pytest.raises(catalog.TaskError, match="ZeroDivisionError: "):
    apart.call(divmod, 1, 0)
  with pytest.raises(catalog.TaskError) as caught:
    apart.call(catalog.json_object, "task.options", "x" * 300)
  assert str(caught.value).startswith("task.options: got ") and len(str(caught.value)) < 300
