"""Which checkpoints can teach, and a run that is taught: the same to the bit, also resumed."""

import json

import jax
import numpy as np
import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.learner import checkpoint
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import families, policy, pretrained, sharding
from offpolicy_rl.roles import build, build_learner, learner, teacher
from offpolicy_rl.tasks import tokenizer
from tests import end_to_end_test as system
from tests.conftest import ROOT
from tests.model.families_test import LLAMA
from tests.run_system import assert_identical, train_rows
from tests.tasks import small_tokenizers as small

VOCAB = 272


def published(folder, special=("<eos>",), **keys):
  """A small checkpoint whose special tokens have the first ids."""
  folder.mkdir()
  keys = LLAMA | {"vocab_size": VOCAB} | keys
  (folder / pretrained.CONFIG).write_text(json.dumps(keys))
  model = families.read(keys)
  names = pretrained.tensor_shapes(model)
  params = policy.init(model, jax.random.key(1))
  pretrained.save(folder, model, params, dict.fromkeys(names, "float32"))
  ids = {text: i + 1 for i, text in enumerate(special)}
  (folder / "tokenizer.json").write_text(small.byte_level(ids).to_str())
  (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
  return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory):
  return published(tmp_path_factory.mktemp("student") / "model")


def taught(tiny_config, student, by) -> tuple:
  tiny_config.model.checkpoint, tiny_config.teacher.checkpoint = str(student), str(by)
  return tiny_config, build.make_policy(tiny_config, tokenizer.read_files(student))


def test_a_larger_model_of_the_same_vocabulary_teaches(tiny_config, student, tmp_path):
  """Of another family and depth, with a row more in its embedding, split over a mesh."""
  by = published(tmp_path / "by", model_type="qwen3", num_hidden_layers=5, vocab_size=VOCAB + 16)
  tiny_config.mesh.tensor = tiny_config.mesh.fsdp = 2
  tiny_config.model.compute_dtype = "bfloat16"
  config, learns = taught(tiny_config, student, by)
  found = teacher.find(config, learns)
  assert (found.model.num_layers, found.model.compute_dtype) == (5, "bfloat16")
  mesh = sharding.make_mesh(**config.mesh)
  params = found.load(policy.param_shardings(mesh, policy.shapes(found.model)))
  flat = policy.flatten(params)
  assert {x.dtype.name for x in flat.values()} == {"bfloat16"}
  assert len(flat["blocks/w_gate"].sharding.device_set) == 4
  expected = policy.init(found.model, jax.random.key(1))["blocks"]["w_gate"]
  np.testing.assert_allclose(np.asarray(flat["blocks/w_gate"], float), expected, rtol=1e-2)


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"vocab_size": VOCAB - 1}, "its model has 271 token ids, expected the 272 of the policy's"),
    ({"special": ("<one>", "<eos>")}, "its token 1 is '<one>', expected the policy's '<eos>'"),
    ({"hidden_size": 72}, "mesh.fsdp: got 16, expected a divisor of model.width = 72"),
  ],
)
def test_one_that_does_not_fit_is_refused(tiny_config, student, tmp_path, changed, message):
  tiny_config.mesh.fsdp = 16
  config, learns = taught(tiny_config, student, published(tmp_path / "by", **changed))
  with pytest.raises(config_lib.ConfigError) as error:
    teacher.find(config, learns)
  assert str(error.value) == f"teacher.checkpoint: {tmp_path}/by: {message}"


@pytest.mark.parametrize("file", [None, "config.json", "tokenizer.json", "model.safetensors"])
def test_one_that_is_not_whole_is_refused(tiny_config, student, tmp_path, file):
  by = published(tmp_path / "by")
  config, learns = taught(tiny_config, student, by if file else tmp_path / "nowhere")
  if file:
    (by / file).unlink()
  with pytest.raises(
    config_lib.ConfigError, match=r"^teacher.checkpoint: .*(missing|no such file)"
  ):
    teacher.find(config, learns)


def ended_run(config, run_dir, step=3):
  """What a run of a fresh model leaves: its configuration and a checkpoint."""
  model, mesh = build.make_policy(config, None).model, sharding.make_mesh()
  choices = build_learner.step_choices(config, model, mesh)
  state = state_lib.create(model, mesh, choices.optimizer, seed=7)
  saved = checkpoint.Checkpoints(run_dir / "checkpoints", keep=1)
  saved.save(step, state, versions={}, position={})
  saved.close()
  (run_dir / "config.json").write_text(config_lib.to_json(config))
  return state.params


def test_a_run_teaches_what_it_has_learned(tiny_config, tmp_path):
  larger = config_lib.load(str(ROOT / "configs" / "test.py"))
  larger.model.num_layers = 3
  saved = ended_run(larger, tmp_path)
  tiny_config.teacher.checkpoint = str(tmp_path)
  found = teacher.find(tiny_config, build.make_policy(tiny_config, None))
  mesh = sharding.make_mesh(fsdp=2)
  params = found.load(policy.param_shardings(mesh, policy.shapes(found.model)))
  assert_identical(*(policy.flatten(jax.tree.map(np.array, x)) for x in (params, saved)))


def test_a_run_of_an_earlier_release_teaches(tiny_config, tmp_path):
  """Its configuration lacks the keys that came since, and has one that went."""
  (tmp_path / "checkpoints").mkdir()
  saved = json.loads(config_lib.to_json(tiny_config))
  del saved["sampler"]["stop"], saved["environment"]
  saved["model"]["gone"] = 1
  (tmp_path / "config.json").write_text(json.dumps(saved))
  tiny_config.teacher.checkpoint = str(tmp_path)
  policies = build.make_policy(tiny_config, None)
  assert teacher.find(tiny_config, policies).model == policies.model


def test_a_published_model_does_not_teach_characters(tiny_config, student):
  tiny_config.teacher.checkpoint = str(student)
  with pytest.raises(
    config_lib.ConfigError, match="its token 0 is .*, expected the policy's '<pad>'"
  ):
    teacher.find(tiny_config, build.make_policy(tiny_config, None))


def test_weights_are_told_apart_by_what_they_are_not_by_their_place(tiny_config, student, tmp_path):
  by, moved = published(tmp_path / "by"), tmp_path / "moved"
  find = lambda folder: teacher.find(*taught(tiny_config, student, folder))
  recorded = find(by).fingerprint()
  by.rename(moved)
  teacher.require_same(find(moved), recorded)
  teacher.require_same(find(moved), None)  # of a run of an earlier release
  for name in (pretrained.CONFIG, pretrained.SINGLE):
    file = moved / name
    kept = file.read_bytes()
    other = kept + b" " if name == pretrained.CONFIG else kept[:-1] + bytes([kept[-1] ^ 1])
    file.write_bytes(other)
    with pytest.raises(config_lib.ConfigError, match=f"expected {recorded}, those that the run"):
      teacher.require_same(find(moved), recorded)
    file.write_bytes(kept)
    teacher.require_same(find(moved), recorded)


def test_a_run_is_another_teacher_once_it_has_learned_more(tiny_config, tmp_path):
  ended_run(tiny_config, tmp_path / "a")
  tiny_config.teacher.checkpoint = str(tmp_path / "a")
  policies = build.make_policy(tiny_config, None)
  before, again = (teacher.find(tiny_config, policies) for _ in range(2))
  assert before.fingerprint() == again.fingerprint()
  ended_run(tiny_config, tmp_path / "a", step=4)
  with pytest.raises(config_lib.ConfigError, match="teacher.checkpoint: .*/a: got weights with"):
    teacher.require_same(teacher.find(tiny_config, policies), before.fingerprint())


@pytest.mark.long
def test_a_taught_run_is_exact_under_lag_and_goes_on_as_if_it_had_not_ended(tiny_config, tmp_path):
  larger = config_lib.load(str(ROOT / "configs" / "test.py"))
  larger.model.width = 64
  ended_run(larger, tmp_path)
  config = system.small(tiny_config, lag__mode="fixed", lag__max_lag=2, checkpoint__every=3)
  config.objective.name, config.teacher.checkpoint = "distill", str(tmp_path)
  config.learner.steps = 5
  system.over_the_wire(config, tmp_path / "run", samplers=2)
  config.learner.steps = 8
  found = system.over_the_wire(config, tmp_path / "run", samplers=1, resume=True)
  assert_identical(found, system.in_one_process(config))
  assert [row["teacher/kl"] > 0 for row in train_rows(tmp_path / "run")] == [True] * 8
  ended_run(larger, tmp_path, step=4)
  with pytest.raises(config_lib.ConfigError, match="the run to resume is taught by"):
    learner.run_learner(config, tmp_path / "run", learner.Serving("127.0.0.1:0"), resume=True)
