"""Adapters through the whole system: trained, streamed, resumed, evaluated, merged on export."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import chaos
from benchmarks.parity import open_model
from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.cli import main
from offpolicy_rl.model import lora, policy, sharding
from offpolicy_rl.observe import metrics
from offpolicy_rl.replay import lag
from offpolicy_rl.roles import build, build_learner, sampler_service
from offpolicy_rl.roles.weights import SamplerWeights, WeightPublisher
from offpolicy_rl.tasks import tokenizer
from offpolicy_rl.transport import codec, weights
from offpolicy_rl.transport import trajectory_pb2 as pb
from tests.conftest import ROOT
from tests.end_to_end_test import over_the_wire
from tests.model import config_variants, random_checkpoints
from tests.model.families_test import LLAMA
from tests.model.lora_test import ADAPTED, logits
from tests.run_system import assert_identical, train_rows
from tests.tasks.tokenizer_test import Gguf

TARGETS = "w_q,w_v,w_o,w_down"
SETTINGS = {
  "task.chat": False,
  "task.prompt": "Add: {question}",
  "task.max_prompt_tokens": 20,
  "warm_start.steps": 30,
  "evaluation.every": 0,
  "lag.mode": "fixed",
  "lag.max_lag": 1,
  "model.lora_rank": 4,
  "model.lora_targets": TARGETS,
  "objective.kl_coef": 0.1,
  "learner.audit_every": 1,
  "learner.learning_rate": 0.01,
}


def run_until(step: int, run_dir, checkpoint, **how):
  """A run, or its resumption, with a sampler over the wire."""
  config = config_lib.load(str(ROOT / "configs" / "test.py"))
  given = SETTINGS | {"model.checkpoint": checkpoint, "learner.steps": step}
  config_lib.override(config, [(key, str(value)) for key, value in given.items()])
  over_the_wire(config, run_dir, 1, **how)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_adapters_from_a_published_checkpoint_to_another_one(tmp_path):
  source, taken, out = tmp_path / "source", tmp_path / "taken", tmp_path / "out"
  random_checkpoints.write(source, config_variants.changed("qwen2", {}))
  tokenizer.write_from_gguf(Gguf(), source)
  assert main.main(["import", f"--from={source}", f"--to={taken}"]) == 0
  run, straight = tmp_path / "run", tmp_path / "straight"
  # Without a break, weights through a directory; and with a break, weights streamed.
  shared = tmp_path / "shared"
  run_until(4, straight, taken, weights_dir=str(shared))
  run_until(2, run, taken)
  shutil.rmtree(taken)  # the run keeps what it needs
  run_until(4, run, taken, resume=True)
  assert_identical(chaos.parameters(run), chaos.parameters(straight))

  losses = [row["loss"] for row in metrics.read(run) if row["kind"] == metrics.WARM_START]
  assert losses[-1] < 0.8 * losses[0]
  rows = train_rows(run)
  assert [row["step"] for row in rows] == [0, 1, 2, 3]
  # Samplers merge, the learner does not: the same log-probabilities all the same.
  compared = [row["mismatch/max"] for row in rows if row.get("mismatch/tokens")]
  assert compared and max(compared) < 1e-4
  assert {row["weights/bytes"] for row in rows} == {4 * number_of_adapter_weights()}

  assert main.main(["export", f"--run_dir={run}", f"--to={out / 'model'}"]) == 0
  _, params = open_model(out / "model")  # `cards_test.py` has transformers open such models
  config_of_run = config_lib.from_json((run / "config.json").read_text())
  model = build.make_policy(config_of_run, tokenizer.read_files(run / "model")).model
  step, merged = build_learner.newest_params(run, model)
  assert step == 4
  assert_identical(*(jax.tree.map(np.asarray, policy.flatten(p)) for p in (merged, params)))
  found = main.main(["eval", f"--run_dir={run}", "--problems=2", f"--out={tmp_path / 'eval'}"])
  assert found == 0 and json.loads((tmp_path / "eval" / "eval.json").read_text())["step"] == 4


def number_of_adapter_weights() -> int:
  """Of the random qwen2: 3 layers, width 48, 6 heads of 8, 2 of them key/value, MLP 80."""
  inputs_and_outputs = {"w_q": 48 + 48, "w_v": 48 + 16, "w_o": 48 + 48, "w_down": 80 + 48}
  return 3 * 4 * sum(inputs_and_outputs.values())


def test_the_base_is_sent_once_and_adapters_alone_afterwards(tiny_config):
  """Learner's store to sampler's receiver, without the wire between them."""
  store, sent = weights.WeightStore(), []
  tickets = SimpleNamespace(needed_versions=lambda _: set())
  service = sampler_service.SamplerService(
    tickets, None, store, lag.LagControl("fixed", 1), expected=codec.Expected(9, 9)
  )

  def pull_weights(low, high, receiver):
    request = pb.WeightsRequest(min_version=low, max_version=high)
    before = receiver.received_bytes
    chunks = map(pb.WeightsChunk.FromString, store.answer(receiver.fill_in(request)))
    found = receiver.receive(chunks)
    sent.append((found[0], receiver.received_bytes - before))
    return found

  base, _ = lora.split(policy.init(ADAPTED, jax.random.key(0)))
  publisher = WeightPublisher(store, "float32", service.published)
  publisher.publish_now(types.RAW_VERSION, jax.tree.map(lambda x: x + 1, base))
  publisher.publish_base(base)
  learner = SimpleNamespace(session="one", pull_weights=pull_weights)
  held = SamplerWeights(learner, tiny_config, ADAPTED, [sharding.make_mesh()])
  [raw] = held.pull(types.RAW_VERSION, types.RAW_VERSION)[1]
  np.testing.assert_array_equal(raw["embedding"], base["embedding"] + 1)
  for version in range(3):
    adapters = stirred(jax.random.key(version))
    publisher.publish_now(version, adapters)
    got, params = held.pull(0, version)
    assert got == version
    expected = logits(ADAPTED, lora.join(base, adapters))
    np.testing.assert_allclose(logits(lora.base_config(ADAPTED), params[0]), expected, atol=5e-5)
    assert held.pull(0, version)[1] is params
    assert service.older_versions() == {0: [], 1: [0], 2: [1]}[version]
  whole, few = bytes_of(base), bytes_of(adapters)
  assert service.version_bytes == few < whole / 3
  assert sent == [
    (types.RAW_VERSION, whole),
    (types.BASE_VERSION, whole),
    (0, few),
    (0, 0),
    (1, few),
    (1, 0),
    (2, few),
    (2, 0),
  ]
  # Whoever joins late gets the base, too.
  late = SamplerWeights(learner, tiny_config, ADAPTED, [sharding.make_mesh()])
  assert late.pull(0, 2)[0] == 2 and sent[-2:] == [(types.BASE_VERSION, whole), (2, few)]


def bytes_of(tree) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def stirred(key):
  """Adapters as if they had been trained."""
  _, adapters = lora.split(policy.init(ADAPTED, key))
  return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), adapters)


def test_experts_have_no_adapters(tiny_config):
  moe = LLAMA | {
    "model_type": "qwen3_moe",
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
  }
  files = types.ModelFiles(json.dumps(moe), "", "", "")
  config_lib.override(tiny_config, [("model.lora_rank", "2")])
  with pytest.raises(config_lib.ConfigError, match="lora_targets: .*experts have no adapters"):
    build.make_policy(tiny_config, files)
