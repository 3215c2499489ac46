"""A sampler whose tokens are unlike the others' is found; lag and luck are no reason."""

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.replay import sampler_stats


def batch(**gaps) -> dict:
  """Completions by sampler -> their |log-ratio| per token."""
  pairs = [(name, gap) for name, found in gaps.items() for gap in found]
  return {
    "sampler": np.array([name for name, _ in pairs]),
    "log_ratio": np.array([gap for _, gap in pairs], np.float32),
    "reward": np.arange(len(pairs)),
  }


def test_means_of_a_batch_by_sampler():
  known = batch(a=[0.1, 0.3], b=[0.2]) | {"mismatch": np.array([np.nan, 0.5, np.nan])}
  found = sampler_stats.SamplerStats().step(known)
  assert found["completions"] == {"a": 2, "b": 1}
  assert found["reward"] == {"a": 0.5, "b": 2.0}
  assert found["log_ratio"] == {"a": pytest.approx(0.2), "b": pytest.approx(0.2)}
  assert found["mismatch"] == {"a": 0.5}  # b's completions were sampled by other versions


def test_what_the_host_knows_of_completions():
  rows = tuple(
    types.Trajectory(np.zeros(n, np.int32), np.zeros(n), np.zeros(n), True, r, v, seconds=s)
    for n, r, v, s in ((3, 1.5, 1.0, None), (1, -0.5, 0.0, types.Seconds(1.0, 2.0, 3.0)))
  )
  made = [
    types.FinishedGroup(None, types.Group("x", rows, sampler_id=s), 0) for s in ("a~1", "b~2")
  ]
  found = sampler_stats.completion_arrays(made)
  assert found["sampler"].tolist() == ["a~1", "a~1", "b~2", "b~2"]
  assert found["length"].tolist() == [3, 1, 3, 1]
  np.testing.assert_array_equal(found["seconds_queue"], [np.nan, 2.0] * 2)
  assert found["reward"].tolist() == [1.5, -0.5] * 2 and found["verdict"].tolist() == [1, 0] * 2


@pytest.mark.parametrize(
  ("gaps", "expected"),
  [
    ({"a": 0.01, "b": 5.0}, {"b"}),
    ({"a": 0.01, "b": 5.0, "c": 6.0, "d": 0.02, "e": 0.01}, {"b", "c"}),
    ({"a": 0.01, "b": np.inf}, {"b"}),
    ({"a": 0.02, "b": 0.3}, set()),  # one that lags behind
    ({"a": 1.0, "b": 1.5}, set()),  # both are old: the mismatch alarm's business
    ({"b": 5.0}, set()),  # there is nothing to compare it with
  ],
)
def test_who_is_unlike_the_others(gaps, expected):
  found = sampler_stats.SamplerStats()
  for _ in range(4):
    found.step(batch(**{name: [gap] * 4 for name, gap in gaps.items()}))
  assert found.unlike().keys() == expected
  assert {name for name in gaps if found.latest(name)["unlike"]} == expected


def test_few_completions_are_no_proof_and_a_sampler_can_get_well():
  found = sampler_stats.SamplerStats()
  found.step(batch(a=[0.01] * 7, b=[5.0] * 7))
  assert found.unlike() == {}
  found.step(batch(a=[0.01], b=[5.0]))
  assert found.unlike() == {"b": 5.0}
  for _ in range(8):
    found.step(batch(a=[0.01] * 8, b=[0.01] * 8))
  assert found.unlike() == {} and found.latest("b")["unlike"] == 0.0


def test_samplers_that_come_and_go_are_forgotten():
  found = sampler_stats.SamplerStats()
  for i in range(1000):
    found.step(batch(**{f"s{i}": [0.1] * 8}))
  assert found.latest("s999")["log_ratio"] == pytest.approx(0.1)
  assert found.latest("s0") == {} and found.latest("never") == {}
  assert len(found._gaps) == len(found._means) == len(found._newest) == 256
