"""The eval role on a run and on a published checkpoint; its completions are judged anew."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import main
from offpolicy_rl.evaluation import estimates
from offpolicy_rl.learner import checkpoint
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import families, policy, pretrained, sharding
from offpolicy_rl.roles import build, build_learner, evaluate, trained
from offpolicy_rl.tasks import catalog, tokenizer, verifiers
from tests.rows import whole_rows
from tests.tasks.tokenizer_test import Gguf

LLAMA = {
  "model_type": "llama",
  "hidden_size": 16,
  "num_attention_heads": 2,
  "num_hidden_layers": 2,
  "vocab_size": 264,
  "num_key_value_heads": 1,
  "intermediate_size": 24,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-5,
  "rope_theta": 1e4,
  "tie_word_embeddings": False,
}


def fond_of_7_and_8(params, words):
  """Changed so that they say nothing else: right now and then."""
  liked = jnp.array([*words.encode("7"), *words.encode("8"), words.eos])
  return params | {
    "embedding": params["embedding"].at[:, 0].add(20.0),  # then hidden state 0 is large, too
    "unembedding": params["unembedding"].at[0, liked].add(4.0),
  }


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
  """A run with a checkpoint of step 3."""
  folder = tmp_path_factory.mktemp("runs") / "run"
  folder.mkdir()
  config = config_lib.load("configs/test.py")
  config.model.tied_embeddings = False
  (folder / "config.json").write_text(config_lib.to_json(config))
  made = build.make_policy(config, None)
  optimizer = build_learner.step_choices(config, made.model, sharding.make_mesh()).optimizer
  params = fond_of_7_and_8(policy.init(made.model, jax.random.key(0)), made.tokenizer)
  state = state_lib.TrainState(jnp.int32(3), params, optimizer.init(params))
  saved = checkpoint.Checkpoints(folder / "checkpoints", keep=1)
  saved.save(3, state, versions={}, position={})
  saved.close()
  return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A Llama with a byte-level tokenizer."""
  folder = tmp_path_factory.mktemp("models") / "llama"
  model = families.read(LLAMA)
  tokenizer.write_from_gguf(Gguf(), folder)
  (folder / "config.json").write_text(json.dumps(LLAMA))
  words = tokenizer.Tokenizer(tokenizer.read_files(folder))
  params = fond_of_7_and_8(policy.init(model, jax.random.key(1)), words)
  dtypes = dict.fromkeys(pretrained.tensor_shapes(model), "float32")
  pretrained.save(folder, model, params, dtypes)
  return folder


def evaluated(out, *arguments):
  assert main.main(["eval", f"--out={out}", *arguments]) == 0
  rows = [json.loads(line) for line in (out / "problems.jsonl").read_text().splitlines()]
  return json.loads((out / "eval.json").read_text()), rows


def test_a_run(run_dir, tmp_path, capsys):
  asked = (f"--run_dir={run_dir}", "--k=1,2,8", "--samples=16", "--slots=16")
  found, rows = evaluated(tmp_path / "a", *asked)
  shown = capsys.readouterr().out
  problems = catalog.TASKS["sums"].split("heldout")
  assert [row["prompt"] for row in rows] == [p.question for p in problems]
  assert [row["answer"] for row in rows] == [p.answer for p in problems]
  for row in rows:
    for completion in (row["greedy"], *row["samples"]):
      right = verifiers.exact(completion["text"], row["answer"])
      assert completion["reward"] == (right if completion["finished"] else 0.0)
      assert completion["finished"] or completion["tokens"] == 3
  sampled = [sample for row in rows for sample in row["samples"]]
  assert len(sampled) == 16 * len(problems) and 0 < sum(s["reward"] for s in sampled) < 100
  assert found["step"] == 3 and found["problems"] == len(problems) == 8 and found["samples"] == 16
  assert found["mean_tokens"] == pytest.approx(np.mean([s["tokens"] for s in sampled]))
  assert found["cut_fraction"] == pytest.approx(np.mean([not s["finished"] for s in sampled]))
  assert 0 < found["cut_fraction"] < 1 and found["verifier_failures"] == 0
  value = {row["name"]: row["value"] for row in found["estimates"]}
  assert list(value) == ["greedy", "pass@1", "pass@2", "pass@8", "maj@2", "maj@8"]
  assert value["greedy"] == np.mean([row["greedy"]["reward"] for row in rows])
  assert value["pass@1"] == pytest.approx(np.mean([s["reward"] for s in sampled]))
  correct = [sum(int(s["reward"]) for s in row["samples"]) for row in rows]
  of_eight = [estimates.pass_at_k(16, c, 8) for c in correct]
  assert value["pass@8"] == pytest.approx(np.mean(of_eight))
  assert all(f"{row['low']:.3f} – {row['high']:.3f}" in shown for row in found["estimates"])

  # The same again, to the byte, and with other slots to the completion; another seed is another.
  evaluated(tmp_path / "b", *asked)
  for name in ("eval.json", "problems.jsonl"):
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
  _, few = evaluated(tmp_path / "c", *asked[:2], "--problems=3", "--slots=48", "--samples=16")
  assert [[s["text"] for s in row["samples"]] for row in few] == [
    [s["text"] for s in row["samples"]] for row in rows[:3]
  ]
  _, other = evaluated(tmp_path / "d", *asked, "--problems=3", "--seed=1")
  assert [row["samples"] for row in other] != [row["samples"] for row in rows[:3]]


@pytest.mark.long
def test_a_published_checkpoint(published, tmp_path, capsys):
  temperature, prompt = 0.7, "Say {question}"
  found, rows = evaluated(
    tmp_path / "out",
    f"--checkpoint={published}",
    "--task=sums",
    "--k=2",
    "--problems=3",
    f"--temperature={temperature}",
    "--max_completion_tokens=5",
    "--split=train",
    f"--config.task.prompt={prompt}",
    '--config.sampler.stop=["####"]',
  )
  shown = capsys.readouterr().out
  assert "a completion ends with '<|im_end|>' (1), the text '####', or after 5 tokens" in shown
  assert found["step"] is None and found["samples"] == 2 and found["split"] == "train"
  opened = pretrained.Checkpoint(published)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  params = opened.load(jax.tree.map(lambda _: here, policy.shapes(opened.config)))
  words = tokenizer.Tokenizer(tokenizer.read_files(published), template=prompt)
  problems = catalog.TASKS["sums"].split("train")
  sequences, starts, sampled = [], [], []
  for row, problem in zip(rows, problems, strict=False):
    prompt_tokens = words.prompt(problem.question)
    # The end-of-sequence token of the first message does not end the text.
    assert row["prompt"] == f"user\nSay {problem.question}\nassistant\n"
    for sample in row["samples"]:
      answer = words.encode(sample["text"]) + [words.eos] * sample["finished"]
      assert len(answer) == sample["tokens"]
      sequences.append(prompt_tokens + answer)
      starts.append(len(prompt_tokens) - 1)
      sampled.append(sample["logprob"])
  width = max(map(len, sequences))
  padded = [tokens + [words.eos] * (width - len(tokens)) for tokens in sequences]  # causal: unseen
  stats = policy.token_stats(opened.config, params, whole_rows(padded), temperature)
  rows = zip(stats.logprobs, starts, sequences, strict=True)
  totals = [float(row[start : len(tokens) - 1].sum()) for row, start, tokens in rows]
  assert totals == pytest.approx(sampled, rel=1e-4)


WRONG = {
  "--checkpoint, --run_dir: expected one of the two": "--task=sums",
  "--checkpoint: nowhere/config.json is missing": "--checkpoint=nowhere",
  "--run_dir: nowhere/config.json is missing": "--run_dir=nowhere",
  "--config: the run has its own": "--run_dir=RUN --config=configs/test.py",
  "--k: got '0', expected numbers >= 1": "--run_dir=RUN --k=0",
  "--k: got '1,x'": "--run_dir=RUN --k=1,x",
  "evaluation.samples: got 3, expected at least 4": "--run_dir=RUN --k=4 --samples=3",
  "evaluation.samples: got 0, expected at least 1": "--run_dir=RUN --config.evaluation.samples=0",
  "evaluation.problems: got 0, expected at least 1": (
    "--run_dir=RUN --config.evaluation.problems=0"
  ),
  "sampler.slots: got 4, expected at least 9": "--run_dir=RUN --k=9 --slots=4",
  "sampler.temperature: got -1.0": "--run_dir=RUN --config.sampler.temperature=-1",
  "task.name: got 'chess', expected one of": "--run_dir=RUN --task=chess",
  "task.name: got 'chain_sum', expected 'sums', which": "--run_dir=RUN --task=chain_sum",
  "model.width: got 64, expected 32, which": "--run_dir=RUN --config.model.width=64",
  "task.train_file: got 'nowhere', expected a file": (
    "--checkpoint=MODEL --task=jsonl --config.task.train_file=nowhere"
  ),
  "--config.task.nam: unknown key": "--run_dir=RUN --config.task.nam=x",
  "--out: configs exists": "--run_dir=RUN --out=configs",
}


@pytest.mark.parametrize(
  ("flags", "samples", "problems"),
  [
    ("--k=1,4", 4, None),
    ("--k=4 --config.evaluation.samples=16", 16, None),
    ("--samples=8 --config.evaluation.samples=16", 16, None),
    ("--samples=8 --problems=3", 8, 3),
    ("--config.evaluation.problems=5", 1, 5),
    ("--problems=3 --config.evaluation.problems=5", 1, 5),
  ],
)
def test_keys_come_after_flags(run_dir, monkeypatch, flags, samples, problems):
  def run(config, *, problems, **_):
    asked.update(samples=config.evaluation.samples, problems=problems)

  asked = {}
  monkeypatch.setattr(evaluate, "run", run)
  assert main.main(["eval", f"--run_dir={run_dir}", *flags.split()]) == 0
  assert asked == {"samples": samples, "problems": problems}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_flags_are_refused(run_dir, published, capsys, message, monkeypatch):
  monkeypatch.setattr(build, "make_policy", lambda *_: pytest.fail("too late"))
  flags = WRONG[message].replace("RUN", str(run_dir)).replace("MODEL", str(published)).split()
  assert main.main(["eval", *flags]) == 2
  assert message in capsys.readouterr().err


def test_prompts_that_are_all_too_long(run_dir, tmp_path, capsys):
  flags = [f"--run_dir={run_dir}", f"--out={tmp_path}/out", "--max_prompt_tokens=2"]
  assert main.main(["eval", *flags]) == 2
  assert "task.max_prompt_tokens: got 2, which leaves no prompt" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_a_failure_midway_leaves_nothing(run_dir, tmp_path, monkeypatch):
  """Else the next call would refuse its --out."""

  def answers(*_):
    assert len(list(tmp_path.iterdir())) == 1  # the half of it
    yield {"greedy": {"text": "\ud83d"}}  # half a pair: no UTF-8
    pytest.fail("it was written")

  monkeypatch.setattr(evaluate, "_answer", answers)
  assert main.main(["eval", f"--run_dir={run_dir}", f"--out={tmp_path}/out"]) == 1
  assert not list(tmp_path.iterdir())


def test_nothing_is_written_into_the_directory_of_a_run(tiny_config, tmp_path, monkeypatch):
  """It may be read-only, or that of a run that goes on."""
  monkeypatch.setattr(tokenizer, "read_files", lambda folder: folder)
  tiny_config.model.checkpoint = "/models/qwen"
  assert trained.model_files(tiny_config, tmp_path) == pathlib.Path("/models/qwen")
  assert not list(tmp_path.iterdir())
  (tmp_path / "model").mkdir()
  assert trained.model_files(tiny_config, tmp_path) == tmp_path / "model"


def test_texts_are_written_as_utf_8(tmp_path, monkeypatch):
  """Whatever the locale says."""
  opened, path = pathlib.Path.open, tmp_path / "problems.jsonl"
  latin = lambda self, mode="r", **given: opened(self, mode, **({"encoding": "latin-1"} | given))
  row = {"samples": [{"text": "½ €", "reward": 1.0}], "greedy": "", "verifier_failures": 0}
  with monkeypatch.context() as elsewhere:
    elsewhere.setattr(pathlib.Path, "open", latin)
    [kept] = evaluate._write(path, iter([row]))
  assert "½ €" in path.read_bytes().decode("utf-8")
  assert kept["samples"] == [{"reward": 1.0}]
