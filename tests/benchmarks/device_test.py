"""What is measured on an accelerator: the task, the queue of batches, resuming; all of it, small.

Whole runs load no package that a bare machine with JAX lacks.
"""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import device, device_lag, device_values, lag_language
from benchmarks import device_countdown as countdown
from tests.conftest import ROOT, XLA_FLAGS

SIZE = countdown.Size(numbers=6, layers=2, width=16, heads=2)
PIECES = [piece for part in device.PARTS.values() for piece in part]
# What cards, tasks, the wire and checkpoints need; a machine for measurements has none of it.
ABSENT = ("ml_collections", "grpc", "google.protobuf", "orbax", "seqio", "tensorflow", "lmdb")


# ---------------------------------------------------------------- the task


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
  """64 prompts and demonstrations; one program for all tests."""
  draw = jax.jit(countdown.problems, static_argnums=(0, 2))
  return tuple(map(np.array, draw(SIZE, jax.random.key(seed), 64)))


def in_words(prompt, answer) -> tuple[list[int], int, list[str]]:
  """(digits and target of a prompt, words of an answer): the tokens' meaning, once more."""
  words = [f"+{d}" for d in range(1, 10)] + [f"-{d}" for d in range(1, 10)]
  words += [f"{d}" for d in range(1, 10)] + [f"{t}" for t in range(-20, 21)] + ["="]
  assert len(words) == countdown.VOCABULARY
  *digits, target, equals = (words[token] for token in prompt)
  assert equals == "="
  return [int(d) for d in digits], int(target), [words[token] for token in answer]


def is_right(prompt, answer) -> bool:
  digits, target, words = in_words(prompt, answer)
  terms = words[::2]
  if not all(re.fullmatch(r"[+-]\d", term) for term in terms):
    return False
  # "-3" is a total, too: the tokens, not the words, tell them apart.
  is_term = all(token < 18 for token in answer[::2])
  used = sorted(abs(int(term)) for term in terms)
  return is_term and used == sorted(digits) and sum(map(int, terms)) == target


def test_demonstrations_tell_the_totals_and_are_right():
  prompts, answers = drawn(0)
  for prompt, answer in zip(prompts, answers, strict=True):
    digits, target, words = in_words(prompt, answer)
    assert digits == sorted(digits) and is_right(prompt, answer)
    totals = [0, *map(int, words[1::2])]
    assert [b - a for a, b in pairwise(totals)] == list(map(int, words[::2]))
    assert totals[-1] == target and max(map(abs, totals)) <= countdown.MAX_TOTAL
  assert len({tuple(prompt) for prompt in prompts}) == 64


def test_the_verifier_takes_right_answers_and_no_others():
  prompts, answers = drawn(1)
  rng = np.random.default_rng(0)
  for row, answer in enumerate(answers):  # most are spoiled, each in one place
    if row % 4 == 1:
      answer[2 * rng.integers(SIZE.numbers)] = rng.integers(18)
    elif row % 4 == 2:
      answer[2 * rng.integers(SIZE.numbers)] = rng.integers(18, countdown.VOCABULARY)
    elif row % 4 == 3:  # totals do not count, nor does the order
      answer[1::2] = rng.integers(countdown.VOCABULARY, size=SIZE.numbers)
      answer[::2] = rng.permutation(answer[::2])
  expected = [is_right(*pair) for pair in zip(prompts, answers, strict=True)]
  assert 32 <= sum(expected) < 45
  found = jax.jit(countdown.is_right)(prompts, answers)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.long
def test_the_sampler_records_what_the_learner_computes():
  params = countdown.init(SIZE, jax.random.key(0))
  prompts, _ = countdown.problems(SIZE, jax.random.key(1), 3)
  made = countdown.sample(SIZE, params, prompts, jax.random.key(2), group_size=4)
  computed = countdown.logprobs(params, jnp.repeat(prompts, 4, axis=0), made.tokens)
  np.testing.assert_allclose(made.logprobs, computed, rtol=1e-4, atol=1e-5)
  assert len({tuple(row) for row in np.array(made.tokens)}) == 12


# ---------------------------------------------------------------- lag


def test_every_lane_gets_its_batches_at_its_lag(monkeypatch):
  """Batch of step t: drawn for step t, by version max(0, t - lag)."""
  study = device_lag.SMALL

  def draw(study, params, seeds, steps):
    numbers = jnp.stack([jnp.full(seeds.shape, params["version"]), seeds, steps])
    return device_lag.Batch(numbers.T, *[jnp.zeros(seeds.shape)] * 3)

  monkeypatch.setattr(device_lag, "_draw", draw)
  seeds = jnp.tile(jnp.arange(study.seeds), len(study.lags))
  waiting = device_lag.Waiting(study, {"version": 0}, seeds)
  lanes = [(lag, seed) for lag in study.lags for seed in range(study.seeds)]
  for step in range(7):
    found = waiting.next({"version": step}, step).prompts.tolist()
    assert found == [[max(0, step - lag), seed, step] for lag, seed in lanes]


def test_objectives_are_those_of_the_list_with_what_the_study_chose():
  assert tuple(device_lag.SETTINGS) == device.OBJECTIVES
  study = lag_language.Study()
  rows = lag_language.read_rows(lag_language.ROWS, study)
  for label, setting in device_lag.SETTINGS.items():
    point = lag_language.chosen(rows, lag_language.BY_LABEL[label], 64, study)
    chosen = lag_language.settings(lag_language.Job(label, *point, 64, 0))
    keys = {f"objective.{key}": value for key, value in setting.keys.items()}
    keys |= {"objective.name": setting.preset, "learner.learning_rate": setting.learning_rate}
    assert keys.items() <= chosen.items(), "what the study of a language model chose"


# ---------------------------------------------------------------- errors, pieces


def test_an_error_is_relative_and_never_hidden_by_what_is_not_finite():
  exact = np.array([3.0, 4.0], np.float32)
  assert device_values.error(exact * np.float32(1.5), exact) == pytest.approx(0.5)
  assert device_values.error(np.array([np.nan, 4.0]), exact) == np.inf


def test_what_is_kept_is_not_made_again(tmp_path):
  row = lambda piece, small=False: {"piece": piece, "small": small}
  want = lambda **how: device.wanted(list(device.PARTS), tmp_path, **({"small": False} | how))
  assert want() == PIECES
  device.keep(tmp_path, row("a"))
  device.keep(tmp_path, row("d/warm"))
  assert want(small=True) == PIECES
  assert want() == [piece for piece in PIECES if piece != "a"]  # the warm start's file is missing
  (tmp_path / device.WARM).touch()
  assert want() == [piece for piece in PIECES if piece not in ("a", "d/warm")]
  for piece in PIECES:
    device.keep(tmp_path, row(piece))
  (tmp_path / device.WARM).unlink()
  assert want() == []  # nothing needs it
  device.keep(tmp_path, row("a", small=True))
  assert list(device.kept(tmp_path, small=True)) == ["a"] and want() == PIECES


def test_a_piece_that_fails_is_told_and_others_are_made():
  made = []

  def do(piece, seconds):
    assert 0 < seconds <= device.PIECE_SECONDS
    if piece in ("b/learner", "d/warm"):
      raise subprocess.TimeoutExpired(piece, seconds)
    made.append(piece)

  lost = dict(device.make(PIECES, do, minutes=9))
  assert made == ["a", "b/decoding", "c"] and list(lost) == [
    piece for piece in PIECES if piece not in made
  ]
  assert "timed out" in lost["b/learner"] and lost["d/grpo"] == "no warm start"
  assert dict(device.make(["a"], do, minutes=0)) == {"a": "no time left"}


# ---------------------------------------------------------------- all of it

OBJECTIVES = ("grpo", "shift")  # of five, whose programs take seconds to compile
TWO_DEVICES = f"{XLA_FLAGS} --xla_force_host_platform_device_count=2"

BARE = f"""
import sys
class Absent:
  def find_spec(self, name, path=None, target=None):
    if any(name == absent or name.startswith(absent + ".") for absent in {ABSENT}):
      raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""
RUN = f"""{BARE}
from benchmarks import device
device.PARTS["d"] = ("d/warm", *(f"d/{{name}}" for name in {OBJECTIVES}))
code = device.main()
assert not [name for name in sys.modules if name in {ABSENT}]
sys.exit(code)
"""


def bare(program: str, *arguments: str) -> str:
  """Prints of a process without ABSENT."""
  done = subprocess.run(
    [sys.executable, "-c", program, *arguments],
    env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": TWO_DEVICES},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def run(*arguments: str) -> list[dict]:
  """Rows of all parts on such a machine."""
  return [json.loads(line) for line in bare(RUN, *arguments).splitlines()]


def test_every_part_can_be_imported_on_a_bare_machine():
  bare(f"{BARE}\nfrom benchmarks import device_lag, device_speed, device_values")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_all_of_it_runs_small_once_and_without_what_a_bare_machine_lacks(tmp_path):
  rows = {row["piece"]: row for row in run("--small", f"--out={tmp_path}")}
  others = {f"d/{name}" for name in device.OBJECTIVES if name not in OBJECTIVES}
  assert list(rows) == [piece for piece in PIECES if piece not in others]
  assert json.loads((tmp_path / device.RESULTS).read_text()) == rows
  assert rows["a"]["within"] and all(max(f["errors"].values()) > 0 for f in rows["a"]["forms"])
  [exact] = [row for row in rows["a"]["sampling"] if row["dtype"] == "float32"]
  assert exact["largest_nats"] < 1e-3
  assert rows["b/learner"]["of_floor"] > 0
  assert rows["b/decoding"]["slots"][0]["of_bandwidth"] > 0
  assert rows["c"]["devices_used"] == 2 and rows["c"]["ratio"] > 0
  study = device_lag.SMALL
  for name in OBJECTIVES:
    row = rows[f"d/{name}"]
    assert row["updates"] == study.updates and row["step"] == [0, 20, 40]
    assert list(row["lags"]) == [str(lag) for lag in study.lags]
    for found in row["lags"].values():
      assert np.shape(found["entropy"]) == np.shape(found["pass@1"]) == (study.seeds, 3)
      assert np.shape(found["ess"]) == (study.seeds, 2) and np.max(found["ess"]) < 1
      assert np.mean(found["reward"]) > 0 and np.isfinite(found["log_ratio"]).all()
  first = [rows[f"d/{name}"]["lags"]["1"]["entropy"][0][0] for name in OBJECTIVES]
  assert len(set(first)) == 1  # all begin with the same warm start
  last = [rows[f"d/{name}"]["lags"]["3"]["entropy"][0][-1] for name in OBJECTIVES]
  assert len({*first, *last}) == 1 + len(OBJECTIVES)
  assert run("--small", f"--out={tmp_path}") == []


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_piece_in_a_process_of_its_own_is_kept_or_told(tmp_path):
  device.in_own_process("c", tmp_path, small=True, seconds=250)
  assert list(device.kept(tmp_path, small=True)) == ["c"]
  with pytest.raises(subprocess.TimeoutExpired):
    device.in_own_process("a", tmp_path, small=True, seconds=0.5)
