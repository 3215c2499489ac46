"""Configurations from cards, flags and JSON."""

import json

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import main


@pytest.mark.parametrize(
  ("assignment", "message"),
  [
    ("lag.max_lag=two", "--config.lag.max_lag: got 'two', expected int"),
    ("task.chat=yes", "--config.task.chat: got 'yes', expected true or false"),
    ("objective.bta=1", "--config.objective.bta: unknown key, expected one of: objective."),
    ("objective=1", "--config.objective: unknown key"),
    (
      "nothing.here=1",
      "--config.nothing.here: unknown key, expected a known one; `offpolicy-rl keys",
    ),
    ("learnr.steps=1", "--config.learnr.steps: unknown key, expected for example learner.steps"),
    ("optimizer.beta=1", "unknown key, expected for example objective.beta"),
    ("lag.mode.x=1", "--config.lag.mode.x: unknown key"),
  ],
)
def test_what_is_no_key_or_no_value_is_refused_by_name(tiny_config, assignment, message):
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.override(tiny_config, [tuple(assignment.split("="))])
  assert message in str(error.value)


def test_overrides_keep_the_type_of_the_key(tiny_config):
  pairs = [("objective.beta", "1"), ("model.tied_embeddings", "false"), ("objective.kappa", "none")]
  config_lib.override(tiny_config, pairs)
  assert tiny_config.objective.beta == 1.0 and isinstance(tiny_config.objective.beta, float)
  assert tiny_config.model.tied_embeddings is False
  assert tiny_config.objective.kappa is None


def test_another_objective_does_not_get_what_the_card_has_for_its_own(tiny_config):
  """Such as kappa: its shift would be added to GRPO's advantages, too."""
  assert (tiny_config.objective.beta, tiny_config.objective.kappa) == (0.5, 0.2)
  pairs = [("objective.beta", "0.3"), ("objective.name", "grpo")]
  assert config_lib.override(tiny_config, pairs) == {"objective.kappa": 0.2}
  assert (tiny_config.objective.beta, tiny_config.objective.kappa) == (0.3, None)
  assert config_lib.override(tiny_config, [("objective.name", "grpo")]) == {}
  assert tiny_config.objective.beta == 0.3


def test_unset_choices_can_be_set_after_a_round_trip_through_json(tiny_config):
  back = config_lib.from_json(config_lib.to_json(tiny_config))
  pairs = [("objective.kl_coef", "0.5"), ("objective.kl", "k2"), ("objective.beta1", "2")]
  config_lib.override(back, pairs)
  config_lib.validate(back)
  assert (back.objective.kl_coef, back.objective.kl, back.objective.beta1) == (0.5, "k2", 2.0)


def test_a_flag_replaces_a_value_of_the_wrong_type_in_a_file(tiny_config):
  nested = tiny_config.to_dict()
  nested["learner"]["steps"], nested["lag"]["max_lag"] = "many", None
  config = config_lib.from_json(json.dumps(nested))
  config_lib.override(config, [("learner.steps", "3"), ("lag.max_lag", "4")])
  config_lib.validate(config)
  assert (config.learner.steps, config.lag.max_lag) == (3, 4)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "configuration: Expecting property name"),
    ("[1]", "configuration: got list, expected a JSON object"),
    ("[" * 100_000, "configuration: "),
    ('{"a.b": 1}', "configuration: "),
    ('{"__class__": 1}', "configuration: "),
    ('{"learner": {"__class__": 1}}', "configuration: "),
  ],
)
def test_what_is_no_configuration_is_refused(text, message):
  with pytest.raises(config_lib.ConfigError, match=message) as error:
    config_lib.from_json(text)
  assert len(str(error.value)) < 400


@pytest.mark.parametrize(
  ("name", "text", "expected"),
  [
    ("card.py", "import nowhere_at_all", "line 1: ModuleNotFoundError: No module named"),
    ("card.py", "x = 1\ndef get_config(:", "SyntaxError"),
    ("card.py", "def get_config():\n  return {}['a']", "line 2: KeyError: 'a'"),
    ("card.py", "def get_config():\n  return 3", "get_config returned 3, expected a ConfigDict"),
    ("card.txt", "x", "expected a Python file such as configs/demo.py"),
    ("config.json", "{", "config.json: configuration: Expecting property name"),
    ("config.json", "[3]", "got list, expected a JSON object"),
    ("config.json", b"\xff", "config.json: 'utf-8' codec"),
    ("config.json", '{"sed": 3}', "'sed': unknown key"),
  ],
)
def test_a_file_that_is_no_card_is_refused_by_name_and_line(tmp_path, capsys, name, text, expected):
  (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  assert main.main(["learner", f"--config={tmp_path / name}"]) == 2
  said = capsys.readouterr().err
  assert expected in said and said.count("\n") == 1


def test_the_configuration_of_a_run_is_a_card(tiny_config, tmp_path, capsys):
  (tmp_path / "config.json").write_text(config_lib.to_json(tiny_config))
  assert config_lib.load(str(tmp_path / "config.json")) == tiny_config
  earlier = json.loads(config_lib.to_json(tiny_config))
  del earlier["seed"], earlier["environment"]["history"]  # keys that came since
  (tmp_path / "config.json").write_text(json.dumps(earlier))
  assert config_lib.load(str(tmp_path / "config.json")) == tiny_config
  assert main.main(["learner", f"--config={tmp_path}"]) == 2
  assert f"did you mean --config={tmp_path}/config.json?" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("key", "meant"),
  [
    ("learner.stepz", "--config.learner.steps"),
    ("steps", "--config.learner.steps or --config.warm_start.steps"),
  ],
)
def test_the_key_that_was_meant_is_asked_about(tiny_config, key, meant):
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.override(tiny_config, [(key, "3")])
  assert str(error.value).endswith(f"; did you mean {meant}?")


def test_none_is_a_weight_where_it_is_one_and_else_the_presets_value(tiny_config):
  pairs = [("objective.name", "cispo"), ("objective.weight", "none"), ("objective.kappa", "none")]
  config_lib.override(tiny_config, pairs)
  assert (tiny_config.objective.weight, tiny_config.objective.kappa) == ("none", None)
  assert config_lib.objective_choices(tiny_config).weight == "none"
  config_lib.override(tiny_config, [("objective.weight", "None")])
  assert config_lib.objective_choices(tiny_config).weight == "truncate"
