"""The pages are true: links lead somewhere, what they name exists, commands have these flags, and
the examples run. `tests/pages.py` says what counts as a command and as a file.
"""

import importlib
import json
import pathlib
import re
import shlex

import numpy as np
import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import flags as flags_lib
from offpolicy_rl.cli import main
from offpolicy_rl.config import keys as config_keys
from offpolicy_rl.environments import environment
from offpolicy_rl.model import families
from offpolicy_rl.tasks import catalog, scoring
from tests import pages
from tests.conftest import ROOT
from tests.end_to_end_test import over_the_wire
from tests.run_system import train_rows

PAGES, CARDS = pages.all_pages(), pages.cards()
PACKAGE = ROOT / "offpolicy_rl"
COMMANDS = [command for page in PAGES + CARDS for command in pages.commands(page)]
EXAMPLES = {name: text for page in PAGES for name, text in pages.files(page).items()}
ROLES = flags_lib.parser("")._subparsers._group_actions[0].choices
MAKEFILE = (ROOT / "Makefile").read_text()
KEYS = config_keys.all_keys().keys()
SECTIONS = {key.split(".")[0] for key in KEYS}
SOURCE = "".join(p.read_text() for p in PACKAGE.rglob("*.py") if "_pb2" not in p.name)


def where(path: pathlib.Path) -> str:
  return str(path.relative_to(ROOT))


@pytest.fixture
def examples(tmp_path, monkeypatch):
  """The files that the pages show, where Python finds them."""
  for name, text in EXAMPLES.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  return tmp_path


# ------------------------------------------------------------------ what pages point to


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_links_lead_somewhere(page):
  for target in pages.links(page):
    name, _, anchor = target.partition("#")
    file = (page.parent / name).resolve() if name else page
    assert file.exists(), target
    assert not anchor or anchor in pages.anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_files_and_tests_that_are_named_exist(page):
  for span in pages.spans(page):
    name, _, test = span.partition("::")
    if not re.fullmatch(r"[\w./*-]+\.(py|sh|proto|md|toml)", name) or "my_" in name:
      continue
    places = (page.parent, ROOT, PACKAGE, ROOT / "tests", ROOT / "configs")
    found = [file for place in places for file in place.glob(name)]
    assert found, span
    assert not test or f"def {test.rstrip('.')}" in found[0].read_text(), span


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_keys_that_are_named_exist(page):
  for span in pages.spans(page):
    key = re.split(r"[=' ]", span)[0].removeprefix("--config.")
    if re.fullmatch(r"[a-z_]+\.(?!example)[a-z_0-9]+", key) and key.split(".")[0] in SECTIONS:
      assert key in KEYS or key.endswith(".py") or _is_code(page, key), span


def _is_code(page: pathlib.Path, name: str) -> bool:
  """`loss.objective` and the like: a module beside the page and something in it."""
  module, _, inside = name.partition(".")
  file = page.parent / f"{module}.py"
  return file.exists() and re.search(rf"\b{inside}\b", file.read_text()) is not None


def test_metrics_in_the_table_of_symptoms_exist():
  page = (PACKAGE / "README.md").read_text()
  table = page[page.index("## When something") : page.index("## Words")]
  shown = {row.split("|")[2] for row in table.splitlines() if row.startswith("|")}
  names = {name for cell in shown for name in re.findall(r"`([a-z_/@0-9]+)`", cell)}
  assert len(names) > 20
  for name in names:
    assert name in KEYS or re.search(rf'["/]{re.escape(name.split("/")[-1])}["\s]', SOURCE), name


# ------------------------------------------------------------------ commands


def test_commands_are_found():
  assert len(COMMANDS) > 80
  assert {c.text.split()[0] for c in COMMANDS} >= {"offpolicy-rl", "make", "python"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{where(c.page)}: {c.text[:50]}")
def test_a_command_can_be_given(command, examples):
  text = re.sub(r"\s{2,}\(.*", "", command.text).replace("HOST:PORT", "learner.example:50051")
  first, *words = [word for word in shlex.split(text) if word != "..."]
  if first == "offpolicy-rl":
    _check_ours(words, command.whole, examples)
  elif first == "make":
    _check_make(words)
  elif first == "pip":
    for extra in re.findall(r"\[(\w+)\]", text):
      assert f'  "{extra}": [' in (ROOT / "setup.py").read_text()
  elif first.startswith("launch/"):
    assert (ROOT / first).exists()
  else:
    assert first in ("python", ".venv/bin/python") and words[0] == "-m"
    _check_module(words[1], words[2:])


def _check_ours(words: list[str], whole: bool, examples: pathlib.Path) -> None:
  assignments = [flags_lib.key_and_text(w) for w in words if w.startswith("--config.")]
  others = [w for w in words if not w.startswith("--config.")]
  if not others or others[0] == "--help":
    return
  flags = [w.partition("=")[0] for w in others[1:] if w.startswith("--")]
  assert set(flags) <= set(ROLES[others[0]]._option_string_actions), others
  if not whole:
    return
  given = flags_lib.parser("").parse_args(others)
  card = getattr(given, "config", None)
  if card:
    here = ROOT / card if (ROOT / card).exists() else examples / card
    config = config_lib.load(str(here))
    config_lib.override(config, assignments)
    config_lib.validate(config)


def _check_make(words: list[str]) -> None:
  for word in words:
    name, is_variable, _ = word.partition("=")
    if is_variable:
      assert f"$({name})" in MAKEFILE or f"${{{name}" in (ROOT / "launch/install.sh").read_text()
    else:
      assert re.search(rf"^{re.escape(name)}:", MAKEFILE, re.MULTILINE), name


def _check_module(name: str, words: list[str]) -> None:
  if name == "pytest":
    assert all((ROOT / word).exists() for word in words)
    return
  base = ROOT / name.replace(".", "/")
  [file] = [f for f in (base.with_suffix(".py"), base / "__main__.py") if f.exists()]
  for word in words:
    flag = word.partition("=")[0]
    assert not flag.startswith("--") or f'"{flag}"' in file.read_text(), flag


RUNNABLE = [line for page in PAGES for line in pages.runnable(page)]


@pytest.mark.parametrize("line", RUNNABLE)
def test_runnable_commands_run(line, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  first, *words = shlex.split(line)
  assert first == "offpolicy-rl"
  assert main.main(words) == 0
  assert capsys.readouterr().out
  made = [word.partition("=")[2] for word in words if word.startswith("--png=")]
  assert all((tmp_path / name).stat().st_size > 1000 for name in made)


def test_there_are_runnable_commands():
  assert len(RUNNABLE) >= 3


# ------------------------------------------------------------------ add your own


def test_the_examples_are_there():
  assert set(EXAMPLES) == {
    "my_agent.py",
    "my_game.py",
    "my_objective.py",
    "my_python.py",
    "my_task.py",
    "my_tools.py",
    "my_verifier.py",
    "configs/my_model.py",
    "my_family.py",
    "my_registry.py",
  }


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_run_with_everything_ones_own(examples):
  """Own objective, task, verifier and architecture in one run with a sampler over the wire."""
  run = examples / "run"
  config = config_lib.load(str(examples / "configs" / "my_model.py"))
  own = {
    "objective.fn": "my_objective:tempered",
    "task.name": "my_task:doubles",
    "task.verifier": "my_verifier:in_place",
    "task.max_prompt_tokens": "5",
    "task.max_completion_tokens": "4",
    "warm_start.steps": "40",
    "learner.steps": "2",
    "learner.audit_every": "0",
  }
  config_lib.override(config, list(own.items()))
  over_the_wire(config, run, samplers=1)
  rows = train_rows(run)
  assert [row["step"] for row in rows] == [0, 1]
  assert all(np.isfinite(row["loss"]) and row["verifier_failures"] == 0 for row in rows)
  assert any(row["grad_norm"] > 0 for row in rows)
  shown = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
  assert all(re.fullmatch(r"\d+\*2=", row["prompt"]) for row in shown)
  judged = [
    (c["text"], c["reward"], int(row["prompt"][:-3])) for row in shown for c in row["completions"]
  ]
  right = lambda text, n: sum(a == b for a, b in zip(text.strip(), str(2 * n), strict=False))
  assert all(
    reward == right(text, n) / max(len(text.strip()), len(str(2 * n))) for text, reward, n in judged
  )
  assert json.loads((run / "config.json").read_text())["model"]["num_layers"] == 3


def test_the_verifier_of_the_page_judges(examples):
  judge = scoring.resolve("my_verifier:in_place")
  found = [judge(text, '"14"') for text in (" 14", "15", "41", "14.0", "")]
  assert found == [1.0, 0.5, 0.0, 0.5, 0.0]


def test_the_tool_of_the_page_judges(examples):
  played = environment.resolve("my_python:Exact")()
  played.reset('"a b"', 0)
  assert [played.step(text).reward for text in (" a b ", "ab")] == [1.0, 0.0]


def test_the_game_of_the_page_is_played(examples, tiny_config):
  tiny_config.task.name = "my_game:numbers"
  [train] = catalog.select(tiny_config.task).split("train")
  assert {json.loads(problem.answer) for problem in train} == set(range(10))
  played = environment.resolve("my_game:GuessTheNumber")()
  assert played.reset("5", 0).text == ""
  said = [played.step(text) for text in ("4", "6", "five", "5")]
  assert [(t.text, t.reward) for t in said] == [(">", 0.0), ("<", 0.0), ("?", 0.0), ("", 1.0)]


def test_the_tools_of_the_page_are_called_and_judged(examples):
  played = environment.resolve("my_tools:Sums")()
  played.reset('"3"', 0)
  call = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
  assert played.step(call).text == "3"
  said = ("<think>1 + 2</think> 3", "4", "<think>3")
  assert [played.step(text).reward for text in said] == [1.0, 0.0, 0.0]


def test_the_agent_of_the_page_is_one(examples):
  assert "add" in str(environment.resolve("my_agent:solve")().tools)


def test_the_task_of_the_page_has_both_splits(examples, tiny_config):
  tiny_config.task.name = "my_task:doubles"
  found = catalog.select(tiny_config.task)
  assert (found.name, found.tasks[0].name) == ("my_task:doubles", "my_task:doubles")
  [train], [held] = found.split("train"), found.split("heldout")
  assert len(train) + len(held) == 100 and 5 < len(held) < 20
  assert all(int(p.question[:-3]) * 2 == int(p.demonstration) for p in train + held)


@pytest.mark.long  # TensorFlow's import
def test_the_registry_of_the_page_is_read(examples, tiny_config):
  for key, value in {"name": "seqio:doubles", "module": "my_registry", "verifier": "exact"}.items():
    tiny_config.task[key] = value
  found = catalog.select(tiny_config.task).expanded()
  [train], [held] = found.split("train"), found.split("heldout")
  assert (len(train), len(held)) == (900, 100)  # the held-out questions are not trained on
  assert all(int(p.question[:-3]) * 2 == int(json.loads(p.answer)) for p in train + held)


def test_the_family_of_the_page_is_read(examples, tmp_path, monkeypatch):
  monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
  keys = {  # of Mistral-7B-v0.3
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32768,
  }
  (tmp_path / "config.json").write_text(json.dumps(keys | {"model_type": "mistral"}))
  found = importlib.import_module("my_family").architecture(tmp_path)
  assert found == families.read(keys | {"model_type": "llama"})
  (tmp_path / "config.json").write_text(
    json.dumps(keys | {"model_type": "mistral", "sliding_window": 4096})  # v0.1
  )
  with pytest.raises(families.UnsupportedModel, match="sliding_window"):
    importlib.import_module("my_family").architecture(tmp_path)


def test_the_loss_of_the_first_page_computes():
  [block] = [b for b in pages.blocks((ROOT / "README.md").read_text()) if "LossInputs" in b]
  names: dict = {}
  exec(block, names)
  assert float(names["loss"]) == pytest.approx(0.26)  # mean (A + kappa beta)^2 / (2 beta)
