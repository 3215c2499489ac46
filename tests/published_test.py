"""A published model through the whole system: import, reinforcement learning, export, reload."""

import shutil

import numpy as np
import pytest

from benchmarks.parity import answers_of, forward_logits, gap, open_model
from offpolicy_rl import main, metrics
from offpolicy_rl.tasks import tokenizer
from tests.model.conftest import reference, run_reference  # noqa: F401 (a fixture)
from tests.system import processes, train_rows
from tests.tasks.tokenizer_test import Gguf


@pytest.mark.timeout(400)
@pytest.mark.parametrize("family", ["qwen3-moe"])
def test_from_a_published_checkpoint_to_another_one(tmp_path, reference, family):  # noqa: F811
  source = tmp_path / "source"
  shutil.copytree(reference / family / "model", source)
  tokenizer.write_from_gguf(Gguf(), source)
  taken, run, out = tmp_path / "taken", tmp_path / "run", tmp_path / "out"
  assert main.main(["import", f"--from={source}", f"--to={taken}"]) == 0
  settings = (
    "--config=configs/test.py", f"--config.model.checkpoint={taken}", "--config.task.chat=False",
    "--config.task.prompt=Add: {question}", "--config.task.max_prompt_tokens=20",
    "--config.warm_start.steps=60", "--config.learner.logprob_chunk=8",
  )  # fmt: skip
  with processes() as launch:
    local = launch("local", *settings, f"--run_dir={run}", "--config.learner.steps=2")
    output, _ = local.communicate(timeout=300)
  assert local.returncode == 0, output
  shutil.rmtree(taken)  # the run keeps what it needs
  with processes() as launch:
    local = launch("local", "--resume", f"--run_dir={run}", "--config.learner.steps=4")
    output, _ = local.communicate(timeout=300)
  assert local.returncode == 0, output
  rows = train_rows(run)
  assert [row["step"] for row in rows] == [0, 1, 2, 3]
  losses = [row["loss"] for row in metrics.read(run) if row["kind"] == metrics.WARM_START]
  assert losses[-1] < losses[0] / 2  # it learns
  assert any("router/max_load" in row for row in rows) == (family == "qwen3-moe")
  # Sampler and learner computed the same log-probabilities.
  compared = [row for row in rows if row.get("mismatch/tokens")]
  assert compared and all(row["mismatch/max"] < 1e-4 for row in compared)

  assert main.main(["export", f"--run_dir={run}", f"--to={out / 'model'}"]) == 0
  run_reference("answer", out)
  config, params = open_model(out / "model")
  answers = answers_of(out)
  assert gap(forward_logits(config, params, answers["tokens"]), answers) < 1e-3
  before = open_model(source)[1]
  changed = np.asarray(params["blocks"]["w_q"]) != np.asarray(before["blocks"]["w_q"])
  assert changed.mean() > 0.5


def test_a_run_that_began_with_fresh_weights_is_not_exported(tmp_path, capsys):
  (tmp_path / "run").mkdir()
  assert main.main(["export", f"--run_dir={tmp_path}/run", f"--to={tmp_path}/out"]) == 1
  assert "only runs that began with a published checkpoint" in capsys.readouterr().err
