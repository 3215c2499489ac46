"""Configurations: all cards build, wrong keys and values are refused by name."""

import json
import resource
import subprocess
import sys

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl import losses
from offpolicy_rl.cli import main
from tests.conftest import ROOT

SHARED = ("__init__", "gsm8k")  # what cards share
CARDS = [p for p in sorted((ROOT / "configs").glob("*.py")) if p.stem not in SHARED]


@pytest.mark.parametrize("card", CARDS, ids=lambda p: p.stem)
def test_every_card_is_valid_and_locked(card):
  config = config_lib.load(str(card))
  config_lib.validate(config)
  assert config.is_locked
  assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", sorted(losses.PRESETS))
def test_every_preset_can_be_configured(tiny_config, name):
  if losses.PRESETS[name].advantage == "value":
    with pytest.raises(config_lib.ConfigError, match="objective.advantage: got 'value'"):
      config_lib.override(tiny_config, [("objective.name", name)])
      config_lib.validate(tiny_config)
    config_lib.override(tiny_config, [("objective.advantage", "vhat")])
  config_lib.override(tiny_config, [("objective.name", name)])
  config_lib.validate(tiny_config)
  assert config_lib.objective_choices(tiny_config).max_tokens == (
    tiny_config.task.max_completion_tokens
  )


def test_pairs_need_micro_batches_of_whole_groups(tiny_config):
  pairs = [("objective.name", "copg"), ("learner.microbatches", "16")]
  config_lib.override(tiny_config, pairs)
  with pytest.raises(config_lib.ConfigError, match=r"learner.microbatches: got 16, .*whole groups"):
    config_lib.validate(tiny_config)


WRONG = [
  ("objective.name=ppo", "objective.name: got 'ppo', expected one of aipo, astar_po, asymre, beta"),
  ("objective.fn=ppo", "objective.fn: got 'ppo', expected one of regression, centred_squares"),
  ("objective.aggregation=mean", "objective.aggregation: got 'mean', expected one of seq_sum"),
  ("objective.clip_low=1.5", "objective.clip_low: got 1.5, expected in [0, 1]"),
  ("objective.beta=0", "objective.beta: got 0.0, expected a number > 0"),
  ("objective.beta=nan", "objective.beta: got nan"),
  ("learner.learning_rate=inf", "learner.learning_rate: got inf"),
  (
    "mesh.data=3",
    "learner.minibatches, learner.microbatches: got 3 x 1 x 1 x 1 x 1, expected a divisor",
  ),
  ("mesh.expert=2", "mesh.expert: got 2, expected 1: the model has no experts"),
  ("mesh.tensor=2", "mesh.tensor: got 2, expected a divisor of model.num_kv_heads = 1"),
  ("learner.microbatches=5", "got 1 x 1 x 1 x 1 x 5, expected a divisor of the 32 rows"),
  ("lag.max_lag=-1", "lag.max_lag: got -1, expected at least 0"),
  ("lag.mode=sometimes", "lag.mode: got 'sometimes', expected one of async, fixed, periodic"),
  ("learner.group_size=1", "learner.group_size: got 1, expected at least 2"),
  ("sampler.slots=2", "sampler.slots: got 2, expected at least 4"),
  ("sampler.temperature=0", "sampler.temperature: got 0.0"),
  ("sampler.data=0", "sampler.data: got 0, expected at least 1"),
  ("sampler.tensor=2", "sampler.tensor: got 2, expected a divisor of model.num_kv_heads = 1"),
  ("sampler.top_k=-1", "sampler.top_k: got -1, expected at least 0"),
  ("sampler.top_p=0", "sampler.top_p: got 0.0, expected above 0 and at most 1"),
  ("sampler.min_p=1", "sampler.min_p: got 1.0, expected at least 0 and below 1"),
  ("sampler.stop=end", "sampler.stop: got 'end', expected a JSON list of texts"),
  ('sampler.stop=[""]', "expected a JSON list of texts"),
  ("sampler.cache_after_update=never", "got 'never', expected one of keep, recompute"),
  ("sampler.page_tokens=0", "sampler.page_tokens: got 0, expected at least 1"),
  ("sampler.cache_tokens=12", "sampler.cache_tokens: got 12, expected 0 or at least"),
  ("sampler.prefill_tokens=0", "sampler.prefill_tokens: got 0, expected at least 1"),
  ("sampler.decode_steps=0", "sampler.decode_steps: got 0, expected at least 1"),
  ("sampler.weight_update=never", "sampler.weight_update: got 'never', expected one of between"),
  ("task.name=chess", "task.name: got 'chess', expected one of"),
  ("task.size=0", "task.size: got 0, expected at least 1"),
  ("task.question_column=", "task.question_column: got '', expected the name of a column"),
  ("task.verifier_memory_mb=-1", "task.verifier_memory_mb: got -1, expected at least 0"),
  ("task.failed_reward=half", "task.failed_reward: got 'half', expected one of zero, mean"),
  ("task.format_pattern=(", "task.format_pattern: got '(', expected a regular expression"),
  ("task.format_pattern=x", "task.format_reward: got 0.0 with task.format_pattern = 'x', expected"),
  ("task.format_reward=1", "task.format_reward: got 1.0 with task.format_pattern = '', expected"),
  ("task.length_weight=-1", "task.length_weight: got -1.0, expected at least 0 and at most"),
  ("learner.max_refills=-1", "learner.max_refills: got -1, expected at least 0"),
  ("transport.lease_seconds=0.6", "transport.heartbeat_seconds: got 0.5, expected at most half"),
  ("transport.weights_dtype=float16", "weights_dtype: got 'float16', expected one of float32, bf"),
  ("transport.delta_bases=-1", "transport.delta_bases: got -1, expected at least 0"),
  ("lag.max_lag=two", "--config.lag.max_lag: got 'two', expected int"),
  ("objective.bta=1", "--config.objective.bta: unknown key, expected one of: objective."),
  ("objective=1", "--config.objective: unknown key"),
  ("nothing.here=1", "--config.nothing.here: unknown key"),
]


@pytest.mark.parametrize(("assignment", "message"), WRONG, ids=lambda x: x[:30])
def test_wrong_values_are_refused_by_name(tiny_config, assignment, message):
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.override(tiny_config, [tuple(assignment.split("="))])
    config_lib.validate(tiny_config)
  assert message in str(error.value)


def test_weights_change_in_flight_only_where_versions_may_differ(tiny_config):
  config_lib.override(tiny_config, [("sampler.weight_update", "in_flight")])
  config_lib.validate(tiny_config)
  config_lib.override(tiny_config, [("lag.mode", "fixed")])
  with pytest.raises(config_lib.ConfigError, match="weight_update: got in_flight, .* = fixed"):
    config_lib.validate(tiny_config)


@pytest.mark.parametrize(
  ("pairs", "message"),
  [
    (
      {"task.max_completion_tokens": 25_000, "transport.max_message_mb": 2},
      "transport.max_message_mb: got 2, expected at least 3: a prompt of .* and so have 4 "
      "completions of 25000 tokens",
    ),
    (
      {"task.max_prompt_tokens": 2_000_000, "transport.max_message_mb": 7},
      "transport.max_message_mb: got 7, expected at least 8: a prompt of 2000000 tokens",
    ),
    (
      {"evaluation.samples": 4097, "sampler.slots": 4097},
      "learner.group_size, evaluation.samples: got 4097, expected at most 4096 completions",
    ),
  ],
)
def test_messages_have_to_hold_tickets_and_groups(tiny_config, pairs, message):
  pairs = {key: str(value) for key, value in pairs.items()}
  config_lib.override(tiny_config, list(pairs.items()))
  with pytest.raises(config_lib.ConfigError, match=message):
    config_lib.validate(tiny_config)
  config_lib.validate(tiny_config, trains=False)  # nothing goes over a wire
  larger = {"transport.max_message_mb": "64", "evaluation.samples": "4"}
  config_lib.override(tiny_config, list(larger.items()))
  config_lib.validate(tiny_config)


def test_periodic_mode_needs_a_period(tiny_config):
  config_lib.override(tiny_config, [("lag.mode", "periodic"), ("lag.max_lag", "0")])
  with pytest.raises(config_lib.ConfigError, match="at least 1 in mode periodic"):
    config_lib.validate(tiny_config)


def test_overrides_keep_the_type_of_the_key(tiny_config):
  pairs = [("objective.beta", "1"), ("model.tied_embeddings", "false"), ("objective.kappa", "none")]
  config_lib.override(tiny_config, pairs)
  assert tiny_config.objective.beta == 1.0 and isinstance(tiny_config.objective.beta, float)
  assert tiny_config.model.tied_embeddings is False
  assert tiny_config.objective.kappa is None


def test_unset_choices_can_be_set_after_a_round_trip_through_json(tiny_config):
  back = config_lib.from_json(config_lib.to_json(tiny_config))
  pairs = [("objective.kl_coef", "0.5"), ("objective.kl", "k2"), ("objective.beta1", "2")]
  config_lib.override(back, pairs)
  config_lib.validate(back)
  assert (back.objective.kl_coef, back.objective.kl, back.objective.beta1) == (0.5, "k2", 2.0)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{", "configuration: Expecting property name"),
    ("[1]", "configuration: got list, expected a JSON object"),
    ("[" * 100_000, "configuration: "),
    ('{"a.b": 1}', "configuration: "),
  ],
)
def test_what_is_no_configuration_is_refused(text, message):
  with pytest.raises(config_lib.ConfigError, match=message) as error:
    config_lib.from_json(text)
  assert len(str(error.value)) < 400


@pytest.mark.parametrize(
  ("section", "key", "value", "message"),
  [
    ("learner", "steps", 2.5, "learner.steps: got 2.5, expected int"),
    ("learner", "steps", True, "learner.steps: got True, expected int"),
    ("learner", "steps", "x" * 9999, "learner.steps: got 'xxxx"),
    ("learner", "learning_rate", "1", "learner.learning_rate: got '1', expected float"),
    ("model", "tied_embeddings", 1, "model.tied_embeddings: got 1, expected bool"),
    ("objective", "name", 3, "objective.name: got 3, expected str"),
    ("learner", "stepz", 1, "'learner.stepz': unknown key"),
    ("task", "name", ["sums"], r"task.name: got \['sums'\], expected str"),
  ],
)
def test_a_configuration_from_the_wire_is_judged_key_by_key(
  tiny_config, section, key, value, message
):
  found = tiny_config.to_dict()
  found[section][key] = value
  with pytest.raises(config_lib.ConfigError, match=message) as error:
    config_lib.validate(config_lib.from_json(json.dumps(found)))
  assert len(str(error.value)) < 400


@pytest.mark.parametrize("key", ["learner.steps", "objective.beta", "model.tied_embeddings"])
def test_a_missing_key_is_named(tiny_config, key):
  found = tiny_config.to_dict()
  section, name = key.split(".")
  del found[section][name]
  with pytest.raises(config_lib.ConfigError, match=f"{key}: missing"):
    config_lib.validate(config_lib.from_json(json.dumps(found)))


def command(*arguments: str) -> tuple[subprocess.CompletedProcess, float]:
  """What it said, and its seconds of processor time: other work on the machine does not count."""
  spent = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
  start = spent()
  done = subprocess.run(
    [sys.executable, "-m", "offpolicy_rl.cli.main", *arguments],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  return done, spent() - start


def test_the_command_line_refuses_before_anything_starts(tmp_path):
  run_dir = tmp_path / "run"
  wrong = "--config.objective.name=ppo"
  done, seconds = command("local", "--config=configs/test.py", wrong, f"--run_dir={run_dir}")
  assert done.returncode == 2
  assert "objective.name: got 'ppo', expected one of" in done.stderr
  assert "Traceback" not in done.stderr
  assert not run_dir.exists()
  assert seconds < 1


@pytest.mark.parametrize(
  ("key", "value", "may"),
  [
    ("task.options", "{}", False),
    ("task.failed_reward", "mean", False),
    ("learner.max_refills", "1", False),
    ("task.data_dir", "elsewhere", True),
    ("task.verifier_memory_mb", "9", True),
    ("learner.steps", "9", True),
  ],
)
def test_a_resumed_run_keeps_what_its_groups_rest_on(tiny_config, key, value, may):
  saved = config_lib.from_json(config_lib.to_json(tiny_config))
  config_lib.override(tiny_config, [(key, value)])
  if may:
    config_lib.check_resume(saved, tiny_config)
    return
  with pytest.raises(config_lib.ConfigError, match=f"{key}: got .* as the run to resume"):
    config_lib.check_resume(saved, tiny_config)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["local", "--config=configs/test.py", "--config.task.name=math"],
      "task.data_dir: got 'train.jsonl', expected a file",
    ),
    (["learner"], "--config: missing"),
    (["learner", "--config=configs/gsm8k.py"], "--config: configs/gsm8k.py is for other files"),
    (["learner", "--config=nowhere.py"], "--config: no file nowhere.py"),
    (["learner", "--config=configs/test.py", "--resume"], "--run_dir: missing"),
    (["local", "--config=configs/test.py", "--samplers=0"], "--samplers: got '0'"),
    (["sampler", "--learner=x:1", "--config.seed=1"], "a sampler is configured by its learner"),
  ],
)
def test_wrong_arguments_get_one_clear_line(arguments, message):
  done, _ = command(*arguments)
  assert done.returncode == 2
  assert message in done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
  ("assignments", "expected"),
  [
    ([], None),
    ([("objective.name", "oapl")], None),  # beta1 = 1 far above beta
    (
      [("objective.name", "oapl"), ("objective.beta1", "1e-3")],
      "raise objective.beta1 to at least",
    ),
    ([("objective.kappa", "-2")], "raise objective.kappa to at least"),
    ([("objective.name", "grpo")], None),  # no temperature, no regime
  ],
)
def test_a_baseline_in_the_negative_regime_gets_a_warning(tiny_config, assignments, expected):
  config_lib.override(tiny_config, assignments)
  config_lib.validate(tiny_config)
  found = config_lib.warnings(tiny_config)
  assert len(found) == (expected is not None)
  assert expected is None or expected in found[0]


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
    ("config.json", '{"seed": 3}', "missing, expected"),
  ],
)
def test_a_file_that_is_no_card_is_refused_by_name_and_line(tmp_path, capsys, name, text, expected):
  (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  assert main.main(["learner", f"--config={tmp_path / name}"]) == 2
  said = capsys.readouterr().err
  assert expected in said and said.count("\n") == 1


def test_the_configuration_of_a_run_is_a_card(tmp_path, capsys):
  made = config_lib.load("configs/test.py")
  (tmp_path / "config.json").write_text(config_lib.to_json(made))
  assert config_lib.load(str(tmp_path / "config.json")) == made
  assert main.main(["learner", f"--config={tmp_path}"]) == 2
  assert f"did you mean {tmp_path}/config.json?" in capsys.readouterr().err
