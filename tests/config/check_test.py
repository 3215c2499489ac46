"""All cards are valid; wrong values, and values that do not go together, are refused by name."""

import json
import subprocess
import sys

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl import losses
from offpolicy_rl.cli import main
from tests.conftest import ROOT

COPIED = ("__init__", "gsm8k")  # no cards by themselves
CARDS = [p for p in sorted((ROOT / "configs").glob("*.py")) if p.stem not in COPIED]


def refused(config, assignments: str, **options) -> str:
  """The message about "key=value key=value"."""
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.override(config, [tuple(x.split("=")) for x in assignments.split()])
    config_lib.validate(config, **options)
  return str(error.value)


@pytest.mark.parametrize("card", CARDS, ids=lambda p: p.stem)
def test_every_card_is_valid_and_locked(card):
  config = config_lib.load(str(card))
  config_lib.validate(config)
  assert config.is_locked
  assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", sorted(losses.PRESETS))
def test_every_preset_can_be_configured(tiny_config, name):
  if losses.PRESETS[name].advantage == "value":
    assert "objective.advantage: got 'value'" in refused(tiny_config, f"objective.name={name}")
    config_lib.override(tiny_config, [("objective.name", name), ("objective.advantage", "vhat")])
  config_lib.override(tiny_config, [("objective.name", name)])
  if losses.PRESETS[name].needs_candidates:
    said = refused(tiny_config, f"objective.name={name}")
    assert "sampler.top_logprobs: got 0, expected at least 1: objective.fn = score_cent" in said
    config_lib.override(tiny_config, [("sampler.top_logprobs", "5")])
  if losses.PRESETS[name].needs_teacher:
    said = refused(tiny_config, f"objective.name={name}")
    assert f"teacher.checkpoint: got '', expected a directory: objective.name = {name}" in said
    config_lib.override(tiny_config, [("teacher.checkpoint", "somewhere")])
  config_lib.validate(tiny_config)
  assert config_lib.objective_choices(tiny_config).max_tokens == (
    tiny_config.task.max_completion_tokens
  )


WRONG = [  # one key of each kind; keys_test.py knows the kinds
  ("objective.name=ppo", "objective.name: got 'ppo', expected one of aipo, astar_po, asymre, bapo"),
  ("objective.fn=ppo", "objective.fn: got 'ppo', expected one of regression, centred_squares"),
  ("objective.aggregation=mean", "objective.aggregation: got 'mean', expected one of seq_sum"),
  ("objective.clip_low=1.5", "objective.clip_low: got 1.5, expected in [0, 1]"),
  ("objective.beta=0", "objective.beta: got 0.0, expected a number > 0"),
  ("objective.beta=nan", "objective.beta: got nan"),
  ("learner.learning_rate=inf", "learner.learning_rate: got inf"),
  ("lag.mode=sometimes", "lag.mode: got 'sometimes', expected one of async, fixed, periodic"),
  ("learner.group_size=1", "learner.group_size: got 1, expected at least 2"),
  ("sampler.top_p=0", "sampler.top_p: got 0.0, expected above 0 and at most 1"),
  ('sampler.stop=[""]', "expected a JSON list of texts"),
  ("task.name=chess", "task.name: got 'chess', expected one of"),
  ("task.question_column=", "task.question_column: got '', expected the name of a column"),
  ("task.format_pattern=(", "task.format_pattern: got '(', expected a regular expression"),
  ("transport.weights_dtype=float16", "weights_dtype: got 'float16', expected one of float32, bf"),
]
NOT_TOGETHER = [
  ("task.format_pattern=x", "task.format_pattern, task.format_reward: got 'x', 0.0, expected a pa"),
  ("task.format_reward=1", "task.format_pattern, task.format_reward: got '', 1.0, expected a pat"),
  ("model.num_kv_heads=3", "model.num_kv_heads: got 3, expected a divisor of model.num_heads = 2"),
  ("mesh.tensor=2", "mesh.tensor: got 2, expected a divisor of model.num_kv_heads = 1"),
  ("sampler.tensor=2", "sampler.tensor: got 2, expected a divisor of model.num_kv_heads = 1"),
  ("mesh.fsdp=3", "mesh.fsdp: got 3, expected a divisor of model.width = 32"),
  ("mesh.expert=2", "mesh.expert: got 2, expected 1: the model has no experts"),
  ("mesh.data=3", "learner.minibatches, learner.microbatches: got 3, 1, 1, 1, 1, expected a produ"),
  ("learner.microbatches=5", "got 1, 1, 1, 1, 5, expected a product that divides the 32 rows"),
  (
    "learner.minibatches=3",
    "learner.minibatches: got 3, expected a divisor of learner.prompts_per",
  ),
  (
    "objective.name=copg learner.microbatches=16",
    "learner.microbatches: got 16, expected a divisor of learner.prompts_per_step / "
    "learner.minibatches = 8 / 1: objective.fn = centred_squares with objective.weight = none "
    "needs whole groups",
  ),
  (
    "objective.name=gepo learner.microbatches=16",
    "objective.fn = policy_gradient with objective.weight = group_ratio_clip needs whole groups",
  ),
  (
    "objective.name=m2po learner.microbatches=2",
    "learner.microbatches: got 2, expected 1: objective.weight = second_moment needs the whole",
  ),
  ("warm_start.rows=9 mesh.data=2", "warm_start.rows: got 9, expected a multiple of data x fsdp x"),
  ("learner.row_tokens=7", "learner.row_tokens: got 7, expected 0 with layout padded"),
  (
    "learner.row_tokens=6 learner.layout=packed",
    "learner.row_tokens: got 6, expected at least 7, the longest prompt and completion",
  ),
  (
    "environment.name=m:C task.verifier=exact",
    "task.verifier: got 'exact', expected '' with an environment, which judges",
  ),
  (
    "environment.name=m:C environment.episodes=15",
    "environment.episodes: got 15, expected 0 or at least sampler.slots = 16",
  ),
  ("lag.mode=periodic lag.max_lag=0", "lag.max_lag: got 0, expected at least 1 in mode periodic"),
  ("lag.mode=replay", "lag.schedule: got '', expected a file in mode replay"),
  ("lag.schedule=x.jsonl", "lag.schedule: got 'x.jsonl', expected a file in mode replay and ''"),
  ("sampler.slots=2", "sampler.slots: got 2, expected at least 4"),
  ("sampler.cache_tokens=12", "sampler.cache_tokens: got 12, expected 0 or at least 78"),
  (
    "sampler.weight_update=in_flight lag.mode=fixed",
    "sampler.weight_update: got 'in_flight', expected between_groups with lag.mode = fixed",
  ),
  ("transport.lease_seconds=0.6", "transport.heartbeat_seconds: got 0.5, expected at most half"),
]


@pytest.mark.parametrize(("assignments", "message"), WRONG + NOT_TOGETHER, ids=lambda x: x[:30])
def test_wrong_values_are_refused_by_name(tiny_config, assignments, message):
  assert message in refused(tiny_config, assignments)


def test_weights_may_change_in_flight_in_mode_async(tiny_config):
  config_lib.override(tiny_config, [("sampler.weight_update", "in_flight")])
  config_lib.validate(tiny_config)


def test_experts_are_split_evenly(tiny_config):
  model = dict(tiny_config.model) | {"vocab_size": 12, "num_experts": 4, "expert_width": 6}
  tiny_config.model.num_kv_heads = model["num_kv_heads"] = 2
  for axes, message in (
    ({"expert": 2, "tensor": 2}, None),
    ({"expert": 3}, "mesh.expert: got 3, expected a divisor of the model's 4 experts"),
    ({"tensor": 4}, "mesh.tensor: got 4, expected a divisor of model.num_kv_heads = 2"),
  ):
    tiny_config.mesh.update({"expert": 1, "tensor": 1} | axes)
    if message is None:
      config_lib.check_architecture(tiny_config, model)
    else:
      with pytest.raises(config_lib.ConfigError, match=message):
        config_lib.check_architecture(tiny_config, model)
  for field, size, message in (
    ("vocab_size", 11, "a divisor of the vocabulary's 11 ids"),
    ("expert_width", 5, "a divisor of 5, the width of the model's experts"),
  ):
    tiny_config.mesh.update({"tensor": 2})
    with pytest.raises(config_lib.ConfigError, match=message):
      config_lib.check_architecture(tiny_config, model | {field: size})


@pytest.mark.parametrize(
  ("assignments", "message"),
  [
    (
      "task.max_completion_tokens=25000 transport.max_message_mb=2",
      "transport.max_message_mb: got 2, expected at least 3: a prompt of 4 tokens must fit, and "
      "so must 4 completions of 25000 tokens",
    ),
    (
      "task.max_prompt_tokens=2000000 transport.max_message_mb=7",
      "transport.max_message_mb: got 7, expected at least 8: a prompt of 2000000 tokens",
    ),
    (
      "evaluation.samples=4097 sampler.slots=4097",
      "evaluation.samples: got 4097, expected at most 4096 completions",
    ),
  ],
)
def test_messages_have_to_hold_tickets_and_groups(tiny_config, assignments, message):
  assert message in refused(tiny_config, assignments)
  config_lib.validate(tiny_config, trains=False)  # nothing goes over a wire
  tiny_config.transport.max_message_mb, tiny_config.evaluation.samples = 64, 4
  config_lib.validate(tiny_config)


@pytest.mark.parametrize(
  ("section", "key", "value", "message"),
  [
    ("learner", "steps", 2.5, "learner.steps: got 2.5, expected int"),
    ("learner", "steps", True, "learner.steps: got True, expected int"),
    ("learner", "steps", None, "learner.steps: got None, expected int"),
    ("learner", "steps", "x" * 9999, "learner.steps: got 'xxxx"),
    ("learner", "steps", 10**400, "0, expected at most 2147483647"),
    ("learner", "learning_rate", 10**400, "0, expected float"),
    ("objective", "beta", 10**400, "0, expected float"),
    ("learner", "learning_rate", "1", "learner.learning_rate: got '1', expected float"),
    ("model", "tied_embeddings", 1, "model.tied_embeddings: got 1, expected bool"),
    ("objective", "name", 3, "objective.name: got 3, expected str"),
    ("learner", "stepz", 1, "'learner.stepz': unknown key"),
    ("task", "name", ["sums"], "task.name: got ['sums'], expected str"),
  ],
  ids=lambda x: f"{x!s:.30}",
)
def test_a_configuration_from_the_wire_is_judged_key_by_key(
  tiny_config, section, key, value, message
):
  nested = tiny_config.to_dict()
  nested[section][key] = value
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.validate(config_lib.from_json(json.dumps(nested)))
  assert message in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("key", ["learner.steps", "objective.beta", "model.tied_embeddings"])
def test_a_missing_key_is_named(tiny_config, key):
  nested = tiny_config.to_dict()
  section, name = key.split(".")
  del nested[section][name]
  with pytest.raises(config_lib.ConfigError, match=f"{key}: missing"):
    config_lib.validate(config_lib.from_json(json.dumps(nested)))


def test_the_command_line_refuses_before_anything_starts(tmp_path):
  run_dir = tmp_path / "run"
  flags = ("--config=configs/test.py", "--config.objective.name=ppo", f"--run_dir={run_dir}")
  done = subprocess.run(
    [sys.executable, "-X", "importtime", "-m", "offpolicy_rl.cli.main", "local", *flags],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 2
  assert "objective.name: got 'ppo', expected one of" in done.stderr
  assert "Traceback" not in done.stderr
  assert not run_dir.exists()
  loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
  assert "ml_collections" in loaded and not loaded & {"jax", "tensorflow", "grpc"}


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["local", "--config=configs/test.py", "--config.task.name=math"],
      "task.data_dir: got 'train.jsonl', expected a file",
    ),
    (
      ["local", "--config=configs/test.py", "--config.task.verifier=nowhere:f"],
      "task.verifier: got 'nowhere:f', expected an importable module:function: there is no module",
    ),
    (["learner"], "--config: missing"),
    (
      ["learner", "--config=configs/gsm8k.py"],
      "--config: configs/gsm8k.py is only a base for other files",
    ),
    (["learner", "--config=nowhere.py"], "--config: no file nowhere.py"),
    (["learner", "--config=configs/test.py", "--resume"], "--run_dir: missing"),
    (["sampler", "--learner=x:1", "--config.seed=1"], "a sampler is configured by its learner"),
  ],
)
def test_wrong_arguments_get_one_clear_line_and_how_to_set_a_key(
  arguments, message, monkeypatch, capsys
):
  monkeypatch.chdir(ROOT)
  assert main.main(arguments) == 2
  first, *others = capsys.readouterr().err.splitlines()
  assert message in first
  assert (others != []) == message.startswith("task.")
  assert all(line.startswith("  set --config.task.") for line in others)


@pytest.mark.parametrize(
  ("key", "value", "may"),
  [
    ("task.options", "{}", False),
    ("task.failed_reward", "mean", False),
    ("learner.max_refills", "1", False),
    ("sampler.int8_weights", "True", False),
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
  lines = config_lib.warnings(tiny_config)
  assert len(lines) == (expected is not None)
  assert expected is None or expected in lines[0]


def test_a_key_that_no_chosen_function_takes_is_named(tiny_config):
  """A sweep may go over objectives with and without it, so it is no error."""
  config_lib.override(tiny_config, [("objective.name", "grpo"), ("objective.clip_low", "0.1")])
  assert not any("objective.clip_low" in line for line in config_lib.warnings(tiny_config))
  config_lib.override(tiny_config, [("objective.name", "reinforce"), ("objective.clip_low", "0.1")])
  [line] = [x for x in config_lib.warnings(tiny_config) if "objective.clip_low" in x]
  assert line.startswith("objective.clip_low: got 0.1, which has no effect: objective.fn = policy")
  config_lib.override(tiny_config, [("objective.fn", "my_module:my_function")])
  assert not any("objective.clip_low" in line for line in config_lib.warnings(tiny_config))


def test_a_fixed_step_size_beside_the_optimal_baseline_gets_a_warning(tiny_config):
  config_lib.override(tiny_config, [("objective.name", "vcpo")])
  config_lib.validate(tiny_config)
  [line] = config_lib.warnings(tiny_config)
  assert line.startswith("learner.ess_target: got 0.0, so the step size is fixed: objective.name")
  config_lib.override(tiny_config, [("learner.ess_target", "0.5")])
  assert not config_lib.warnings(tiny_config)
  config_lib.override(tiny_config, [("learner.ess_target", "0"), ("objective.name", "max_rl")])
  assert not config_lib.warnings(tiny_config)


PLAYED = {"sums": 1, "chain_sum": {"rate": 1, "environment": "m:C"}}


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    (
      {"environment.name": "m:D"},
      "environment.name: got 'm:D', expected '' or none with task.name",
    ),
    ({"environment.tools": "[]"}, "environment.tools: got '[]', expected '' or an object, env"),
    ({"environment.tools": '{"m:D": []}'}, "schemas, of the mixture's: m:C"),
    ({"environment.tools": '{"m:C": 1}'}, "expected a JSON list of objects, an object of such"),
    ({"task.name": "sums", "task.mixture": "", "environment.tools": "{}"}, "a list of schemas unl"),
    (
      {"task.mixture": json.dumps(PLAYED | {"sums": {"rate": 1, "environment": 1}})},
      "task.mixture: sums: environment: got 1, expected str",
    ),
    (
      {"task.mixture": json.dumps(PLAYED | {"sums": {"rate": 1, "environment": "m:C"}})},
      "task.format_pattern: got 'x', expected '' with an environment, which judges the turns",
    ),
  ],
)
def test_a_mixture_with_environments_is_refused_where_it_can_not_be_played(
  tiny_config, keys, message
):
  given = {"task.name": "mixture", "task.mixture": json.dumps(PLAYED)}
  given |= {"task.format_pattern": "x", "task.format_reward": "0.5"}
  given |= {"judge.url": "http://127.0.0.1:9/v1", "judge.model": "m"}
  given |= {"judge.rubric": '{"verifier": {"weight": 1}}', "task.max_prompt_tokens": "99"}
  config_lib.override(tiny_config, list(given.items()))
  config_lib.validate(tiny_config)
  for name in ("none", ""):
    config_lib.override(tiny_config, [("environment.name", name)])
    config_lib.validate(tiny_config)
  config_lib.override(tiny_config, list(keys.items()))
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.validate(tiny_config)
  assert message in str(error.value)
