"""Every card with a published model, as it stands, with a small random model of its config.json:
import, two steps with a sampler over the wire, export, and back into transformers.
"""

import json

import numpy as np
import pytest

from benchmarks.parity import answers_of, forward_logits, gap, open_model
from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import main
from offpolicy_rl.tasks import tokenizer
from tests.conftest import ROOT
from tests.end_to_end_test import over_the_wire
from tests.model import random_checkpoints
from tests.model.conftest import run_reference
from tests.run_system import train_rows
from tests.tasks.tokenizer_test import Gguf

CARDS = {  # card -> config.json of tests/data/published
  "gsm8k_qwen3_0_6b": "qwen3-0.6b",
  "gsm8k_qwen2_5_1_5b": "qwen2.5-1.5b-instruct",
  "gsm8k_llama3_2_1b": "llama-3.2-1b-instruct",
  "gsm8k_gemma3_1b": "gemma-3-1b-it",
  "gsm8k_qwen3_30b_a3b": "qwen3-30b-a3b",
}
OTHER_SIZES = {"gsm8k_qwen3_1_7b", "gsm8k_qwen3_8b", "gsm8k_qwen3_32b"}  # of a card above
# Sizes only: everything else is the card's.
SMALL = {
  "mesh.fsdp": 1,
  "sampler.tensor": 1,
  "task.data_dir": "tests/data/word_problems",
  "task.max_prompt_tokens": 450,
  "task.max_completion_tokens": 12,
  "task.verifier_processes": 1,
  "learner.steps": 2,
  "learner.prompts_per_step": 4,
  "learner.group_size": 2,
  "learner.microbatches": 2,
  "learner.row_tokens": 1000,
  "learner.max_refills": 2,
  "learner.logprob_chunk": 8,
  "learner.learning_rate": 1e-3,
  "learner.warmup_steps": 0,
  "sampler.slots": 8,
  "evaluation.problems": 2,
  "evaluation.samples": 2,
}


def test_every_card_of_a_published_model_is_tried_here():
  found = {p.stem for p in (ROOT / "configs").glob("gsm8k_*.py")}
  assert found == set(CARDS) | OTHER_SIZES


@pytest.mark.parametrize("card", sorted(set(CARDS) | OTHER_SIZES))
def test_a_card_is_good_as_it_stands(card):
  config_lib.validate(config_lib.load(str(ROOT / "configs" / f"{card}.py")))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """CARD/model in here, once its run has ended."""
  return tmp_path_factory.mktemp("exported")


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("card", "published"), CARDS.items())
def test_from_import_to_export(tmp_path, exported, capsys, card, published):
  source, taken, run = tmp_path / "source", tmp_path / "taken", tmp_path / "run"
  said = (ROOT / "tests" / "data" / "published" / published / "config.json").read_text()
  keys = random_checkpoints.shrunk(json.loads(said))
  random_checkpoints.write(source, keys)
  tokenizer.write_from_gguf(Gguf(), source)
  assert main.main(["import", f"--from={source}", f"--to={taken}"]) == 0
  # In bfloat16 a router's near ties go another way in the learner: other experts, any mismatch.
  exact = {"model.compute_dtype": "float32", "transport.weights_dtype": "float32"}
  is_mixture = "num_experts" in keys
  small = SMALL | (exact if is_mixture else {})
  config = config_lib.load(str(ROOT / "configs" / f"{card}.py"))
  given = {"model.checkpoint": taken, **small}
  config_lib.override(config, [(key, str(value)) for key, value in given.items()])
  over_the_wire(config, run, samplers=1)
  assert "a completion ends with '<|im_end|>' (1)" in capsys.readouterr().out
  rows = train_rows(run)
  assert [row["step"] for row in rows] == [0, 1]
  assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
  assert rows[0]["mismatch/tokens"] > 0
  assert rows[0]["mismatch/max"] < (1e-4 if is_mixture else 0.3)  # else bfloat16
  assert any("router/max_load" in row for row in rows) == is_mixture
  out = exported / card / "model"
  assert main.main(["export", f"--run_dir={run}", f"--to={out}"]) == 0
  before, after = (np.asarray(open_model(x)[1]["blocks"]["w_q"]) for x in (source, out))
  assert np.mean(before != after) > 0.5
  assert json.loads((out / "config.json").read_text()) == keys


@pytest.mark.long
def test_transformers_computes_the_same_with_what_was_exported(exported):
  """After the runs above; all at once, as importing PyTorch takes longer than the comparison."""
  assert {folder.name for folder in exported.iterdir()} == CARDS.keys()
  run_reference("answer", *exported.iterdir())
  for folder in exported.iterdir():
    config, params = open_model(folder / "model")
    answers = answers_of(folder)
    found = gap(forward_logits(config, params, answers["tokens"]), answers)
    assert found < 1e-3, (folder.name, found)


def test_a_run_that_began_with_fresh_weights_is_not_exported(tmp_path, capsys):
  (tmp_path / "run").mkdir()
  assert main.main(["export", f"--run_dir={tmp_path}/run", f"--to={tmp_path}/out"]) == 1
  assert "only runs that began with a published checkpoint" in capsys.readouterr().err
