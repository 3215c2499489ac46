"""A stranger's seqio Mixture through whole runs: killed and resumed to the bit, judged by its own
metric, and no TensorFlow in a sampler.
"""

import json
import pathlib
import subprocess
import sys

import pytest

from offpolicy_rl.observe import metrics
from tests.conftest import ROOT
from tests.run_system import (
  assert_same_metrics,
  assert_same_training,
  kill,
  processes,
  run_local,
  train_rows,
  wait_for,
)

STEPS = 24
SETTINGS = [
  "--config=configs/test.py",
  "--config.task.name=seqio:strangers",
  "--config.task.module=tests.tasks.strangers",
  "--config.task.max_listed=60",  # two of the three are streamed
  "--config.lag.mode=fixed",
  "--config.lag.max_lag=2",
  "--config.learner.max_refills=1",
  "--config.warm_start.steps=150",
  f"--config.learner.steps={STEPS}",
  "--config.checkpoint.every=5",
]


@pytest.fixture
def strangers(tmp_path, monkeypatch):
  """The stranger's data; the environment of the processes names them."""
  folder = tmp_path / "data"
  folder.mkdir()
  monkeypatch.setenv("STRANGERS_DIR", str(folder))
  code = (
    f"from tests.tasks import strangers; strangers.prepare(strangers.pathlib.Path({str(folder)!r}))"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def loaded(process) -> str:
  return pathlib.Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_strangers_mixture_trains_resumes_to_the_bit_and_is_judged_by_its_metric(
  tmp_path, strangers
):
  expected, found = tmp_path / "undisturbed", tmp_path / "run"
  run_local(*SETTINGS, f"--run_dir={expected}", "--samplers=1", seconds=400)
  arguments = ["learner", *SETTINGS, f"--run_dir={found}"]
  with processes() as launch:
    learner = launch(*arguments)
    wait_for((found / "address").exists, 120, "the learner's address")
    address = (found / "address").read_text()
    sampler = launch("sampler", f"--learner={address}")
    wait_for(lambda: len(train_rows(found)) > 8, 200, "step 8")
    assert "tensorflow" in loaded(learner) and "tensorflow" not in loaded(sampler)
    kill(learner)
    learner = launch(*arguments, "--resume", f"--listen={address}")
    output, _ = learner.communicate(timeout=400)
    assert learner.returncode == 0, output
    assert sampler.wait(timeout=60) == 0
  assert_same_training(found, expected)
  assert_same_metrics(found, expected)
  _check_evaluation(expected, tmp_path / "eval")


def _check_evaluation(run_dir, out):
  """The metric of each Task over its greedy completions, which is the reward, too."""
  done = subprocess.run(
    [sys.executable, "-m", "offpolicy_rl.cli.main", "eval", f"--run_dir={run_dir}", f"--out={out}"],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  result = json.loads((out / "eval.json").read_text())
  rows = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
  assert set(result["metrics"]) == {
    f"seqio:strangers_{name}" for name in ("sums", "products", "differences")
  }
  for name, values in result["metrics"].items():
    assert f"{name}: greedy completions by its own metrics: right " in done.stdout
    its = [row for row in rows if json.loads(row["answer"])["task"] == name.removeprefix("seqio:")]
    assert values["judged"] == len(its) > 0
    finished = [row["greedy"]["reward"] for row in its if row["greedy"]["finished"]]
    if len(finished) == len(its):  # one that was cut earns nothing, whatever it says
      assert values["right"] == pytest.approx(100 * sum(finished) / len(its))
  heldout = [row for row in metrics.read(run_dir) if row["kind"] == metrics.HELDOUT]
  assert heldout[-1]["heldout/pass@1"] > 0 and not heldout[-1]["heldout/verifier_failures"]


START = """
import pathlib, re, time
started = time.process_time()

def peak():  # MB of this program; getrusage() counts the one that it was forked from, too
  status = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024

from offpolicy_rl.tasks import catalog, prompts, stream, vocabulary
from offpolicy_rl import config as config_lib
config = config_lib.load("configs/test.py")
task = config.task
task.name, task.module, task.verifier = "seqio:all", "tests.tasks.large", "exact"
selection, words = catalog.select(config.task).expanded(), vocabulary.Vocabulary()
members = prompts.tokenize_split(selection, "train", lambda _: prompts.Rendering(words, 20))
drawn = stream.make_stream([(rate, made.prompts) for rate, made in members], seed=0)
first = [words.decode(drawn[i].prompt_tokens.tolist()) for i in range(64)]
seconds = time.process_time() - started
print(seconds, peak(), len(set(first)))
started = time.process_time()
drawn[1_000_000]
print(time.process_time() - started, peak())
"""


@pytest.mark.long
def test_a_mixture_of_ten_million_prompts_starts_in_seconds_and_stays_small():
  done = subprocess.run(
    [sys.executable, "-c", START], cwd=ROOT, check=True, capture_output=True, text=True
  )
  (seconds, megabytes, different), (resumed, later) = (
    map(float, line.split()) for line in done.stdout.splitlines()
  )
  print(done.stdout)
  assert different > 60
  assert seconds < 30 and resumed < 120  # CPU seconds; 12 and 51 on an AMD EPYC
  assert megabytes < 1000 and later < 1000
