"""Verifiers that misbehave: each costs only its own completion's reward, and is counted."""

import dataclasses

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.sampler import worker
from offpolicy_rl.tasks import scoring, shaping, verifiers
from tests.tasks import misbehaving, scores

NAME = "tests.tasks.misbehaving:misbehaves"


@pytest.fixture(scope="module")
def scorer():
  with scoring.Scorer(NAME, workers=1, time_limit=1.0, memory_mb=512) as made:
    yield made


@pytest.mark.parametrize("bad", misbehaving.BAD)
def test_a_bad_completion_costs_only_its_own_reward_and_is_counted(scorer, bad):
  handles = [scorer.submit(["5", bad, "6", "5"], '"5"'), scorer.submit(["5", "6"], '"5"')]
  found = [[(j.reward, j.failed) for j in scorer.judgements(handle)] for handle in handles]
  assert found[0] == [(1.0, False), (0.0, True), (0.0, False), (1.0, False)]
  assert found[1] == [(1.0, False), (0.0, False)]


def test_a_failure_is_told_apart_from_a_wrong_answer_and_its_reason_is_logged(scorer, caplog):
  found = scorer.judgements(scorer.submit(["5", "raises", "6"], '"5"'))
  assert [(j.reward, j.failed) for j in found] == [(1.0, False), (0.0, True), (0.0, False)]
  assert "verifier failed (RuntimeError: no (" in caplog.text
  assert f"{misbehaving.__file__}, line 42)) on 'raises'" in caplog.text


def test_scalars_of_numpy_are_numbers():
  name = "tests.tasks.misbehaving:returns_scalars"
  with scoring.Scorer(name, workers=1, time_limit=5.0) as one:
    texts = ["float32", "float64", "int64", "bool_", "array", "atleast_2d", "complex64", "str_"]
    assert scores.rewards(one, texts, '"5"') == ([1.0] * 6 + [0.0] * 2, 2)


def test_without_a_limit_memory_is_not_limited():
  name = "tests.tasks.misbehaving:says_its_limit"
  limits = []
  for memory_mb in (0, 512):
    with scoring.Scorer(name, workers=1, time_limit=5.0, memory_mb=memory_mb) as one:
      [limit], failures = scores.rewards(one, ["x"], '"5"')
      assert failures == 0
      limits.append(limit)
  assert limits[0] == -1 / 2**20 and 512 < limits[1] < 4096


def test_the_import_of_a_package_counts_in_no_limit():
  """reasoning-gym takes 2 s and 300 MB; counted, no completion would ever be judged."""
  entry = {"answer": "6", "metadata": {}}
  answer = verifiers.dumps({"dataset": "gcd", "entry": entry})
  name = verifiers.NAMED["reasoning_gym"]
  with scoring.Scorer(name, workers=1, time_limit=1.0, memory_mb=64) as one:
    assert scores.rewards(one, ["6", "7"], answer) == ([1.0, 0.0], 0)


def test_formats_are_looked_for_in_the_worker_within_the_limit():
  pattern = r"^<think>.*</think>\s*<answer>[^<]*</answer>$"
  texts = ["<think>a\nb</think>\n<answer>5</answer>", "<answer>5</answer>", "sleeps"]
  with scoring.Scorer(NAME, workers=1, time_limit=1.0, pattern=pattern) as one:
    found = one.judgements(one.submit(texts, '"5"'))
  assert [(j.well_formed, j.failed) for j in found] == [
    (True, False),
    (False, False),
    (False, True),
  ]


def test_a_pattern_that_never_ends_is_a_failure():
  with scoring.Scorer(NAME, workers=1, time_limit=1.0, pattern=r"(a+)+$") as one:
    found = one.judgements(one.submit(["5", "a" * 60 + "b"], '"5"'))
  assert [(j.reward, j.failed) for j in found] == [(1.0, False), (0.0, True)]


@pytest.mark.parametrize(
  "name",
  [
    "nowhere:f",
    "offpolicy_rl.tasks.verifiers:nothing",
    "no_colon",
    "os:system",
    "json:loads",
    "tests.tasks.misbehaving:not_a_verifier",
  ],
)
def test_what_is_no_verifier_is_refused_at_once(name):
  for asked in ((name,), (NAME, name)):
    with pytest.raises(ValueError, match=f"verifier: got '{name}', expected"):
      scoring.Scorer(asked[0], also=asked[1:], workers=1, time_limit=1.0)


class Bytes:
  """Token ids are bytes."""

  def decode(self, ids):
    return bytes(ids).decode()

  decode_special = decode_all = decode


def ticket(kind: str, prompt: str = "?") -> types.Ticket:
  prompt = np.frombuffer(prompt.encode(), np.uint8).astype(np.int32)
  return types.Ticket(f"{kind}/0/0", kind, 0, 0, prompt, '"5"', 0, 0, 3, 1.0)


def trajectory(text: str, *, finished: bool = True) -> types.Trajectory:
  tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
  return types.Trajectory(
    tokens, np.zeros(len(text), np.float32), np.zeros(len(text), int), finished
  )


def test_training_is_shaped_and_evaluation_sees_the_verdict(scorer):
  """A shaped reward would make 1.0, what evaluation counts, mean something else."""
  tickets = [ticket(types.TRAIN), ticket(types.EVAL)]
  texts = ["5", "raises", "666"]
  shape = shaping.Shaping(format_reward=0.25, length_weight=0.5, failed=shaping.MEAN)
  groups = worker.score_groups(
    scorer, Bytes(), tickets, [[trajectory(t) for t in texts]] * 2, shape=shape
  )
  trained, evaluated = ([t.reward for t in group.trajectories] for group in groups)
  # l = 1/2 - (length - 1) / 5: 0.5 for "5", min(0, 0.1) for "666".
  assert trained == [1.5, (1.5 + 0.25) / 2, 0.25]
  assert evaluated == [1.0, 0.0, 0.0]
  verdicts = [[t.verdict for t in group.trajectories] for group in groups]
  assert verdicts == [[1.0, 0.5, 0.0], [1.0, 0.0, 0.0]]  # a failed one: the mean, as it is trained
  assert [group.verifier_failures for group in groups] == [1, 1]


def test_episodes_among_judged_completions_have_the_verdict_of_their_environment(scorer):
  """They reach no verifier, and have no format to be rewarded for."""
  played = dataclasses.replace(ticket(types.TRAIN), environment="a:World")
  won = dataclasses.replace(trajectory("5"), reward=0.75, ended=types.DONE)
  failed = dataclasses.replace(trajectory("5"), reward=0.0, ended=types.FAILED)
  groups = worker.score_groups(
    scorer,
    Bytes(),
    [played, ticket(types.TRAIN), played],
    [[won, failed], [trajectory("5"), trajectory("6")], [won, won]],
    shape=shaping.Shaping(format_reward=0.25),
  )
  rewards = [[t.reward for t in group.trajectories] for group in groups]
  assert rewards == [[0.75, 0.0], [1.25, 0.25], [0.75, 0.75]]
  assert [group.verifier_failures for group in groups] == [1, 0, 0]
  told = dataclasses.replace(trajectory("5  "), reward=1.0, ended=types.DONE)
  told.versions[1:] = types.NO_VERSION  # these words are of the environment
  [same] = worker.score_groups(
    None, Bytes(), [played], [[won, told]], shape=shaping.Shaping(length_weight=0.5)
  )
  assert [t.reward for t in same.trajectories] == [0.75, 1.0]
  [alone] = worker.score_groups(None, Bytes(), [played], [[won]])
  assert alone.trajectories[0].verdict == 0.75


@pytest.mark.parametrize("kind", [types.TRAIN, types.EVAL])
@pytest.mark.parametrize(
  ("prompt", "finished", "judge_unfinished", "expected"),
  [
    ("?", True, False, [1, 1, 0, 0, 1]),
    ("?", False, False, [0, 0, 0, 0, 0]),
    ("?", False, True, [1, 1, 1, 0, 1]),
    ("think in <think>: ?", True, False, [1, 1, 0, 0, 1]),  # named, not opened
    ("?<think>\n", True, False, [0, 1, 0, 0, 1]),
    ("?<think>\n", False, True, [1, 1, 1, 0, 1]),
    ("?<think>\n\n</think>\n\n", True, False, [1, 1, 0, 0, 1]),
  ],
)
def test_what_has_not_answered_earns_nothing(
  judge_at_once, kind, prompt, finished, judge_unfinished, expected
):
  """Whatever is added for format or length: a pattern may well be found in a cut text."""
  texts = ["5", "<think>6</think>5", "<think>5", "<think>5</think>6", "6</think> 5"]
  [group] = worker.score_groups(
    judge_at_once,
    Bytes(),
    [ticket(kind, prompt)],
    [[trajectory(text, finished=finished) for text in texts]],
    judge_unfinished=judge_unfinished,
  )
  assert [t.reward for t in group.trajectories] == expected
  assert group.verifier_failures == 0


@pytest.fixture
def judge_at_once():
  """A scorer that judges by `exact` in this process."""

  class AtOnce:
    def submit(self, completions, answer, question):
      assert question
      return completions, answer

    def judgements(self, submitted):
      completions, answer = submitted
      return [scoring.Judgement(verifiers.exact(c, answer), True, False) for c in completions]

  return AtOnce()


def test_a_cut_completion_earns_nothing_for_its_format_and_reaches_no_verifier(scorer):
  texts = ["5", "5", "raises"]
  [group] = worker.score_groups(
    scorer,
    Bytes(),
    [ticket(types.TRAIN)],
    [[trajectory(text, finished=i == 0) for i, text in enumerate(texts)]],
    shape=shaping.Shaping(format_reward=0.25),
  )
  assert [t.reward for t in group.trajectories] == [1.25, 0.0, 0.0]
  assert group.verifier_failures == 0
