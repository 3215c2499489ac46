"""Prompt streams: pure functions of seed and index, and mixtures at exact rates."""

import collections

import pytest

from offpolicy_rl.tasks import stream as streams
from offpolicy_rl.tasks.stream import MixedStream, PromptStream


def test_the_stream_is_a_function_of_seed_and_index():
  items = list(range(7))
  stream = PromptStream(items, seed=3)
  first = [stream[i] for i in range(21)]
  assert first == [PromptStream(items, seed=3)[i] for i in range(21)]
  for epoch in range(3):
    assert sorted(first[7 * epoch : 7 * epoch + 7]) == items
  assert first[:7] != first[7:14]
  assert first != [PromptStream(items, seed=4)[i] for i in range(21)]
  with pytest.raises(ValueError, match="examples"):
    PromptStream([], seed=0)


A, B, C = ([f"{name}{i}" for i in range(n)] for name, n in (("a", 70), ("b", 9), ("c", 4000)))
MIXED = [(0.7, A), (0.2956, B), (0.0044, C)]


def test_a_mixture_keeps_its_rates_in_every_block():
  mixed = MixedStream(MIXED, seed=5)
  for block in range(3):
    items = [mixed[i] for i in range(1000 * block, 1000 * block + 1000)]
    # 0.2956 and 0.0044 of 1,000 are no whole numbers: the larger remainder is rounded up.
    assert collections.Counter(item[0] for item in items) == {"a": 700, "b": 296, "c": 4}


def test_a_member_of_a_mixture_makes_its_own_passes():
  mixed = MixedStream(MIXED, seed=5)
  items = [item for item in (mixed[i] for i in range(4000)) if item[0] == "b"]
  for start in range(0, len(items) - 9, 9):
    assert sorted(items[start : start + 9]) == sorted(B)


def test_a_mixture_is_a_function_of_seed_and_index():
  items = [MixedStream(MIXED, seed=5)[i] for i in range(0, 3000, 7)]
  mixed = MixedStream(MIXED, seed=5)
  assert items[::-1] == [mixed[i] for i in reversed(range(0, 3000, 7))]
  assert items != [MixedStream(MIXED, seed=6)[i] for i in range(0, 3000, 7)]


def test_one_task_has_the_stream_it_always_had():
  assert [streams.make_stream([(1.0, A)], 3)[i] for i in range(99)] == [
    PromptStream(A, 3)[i] for i in range(99)
  ]
  assert streams.interleaved([(1.0, A)]) == A
  with pytest.raises(ValueError, match="examples"):
    streams.make_stream([(0.5, A), (0.5, [])], 0)


def test_evaluation_takes_the_members_in_turn_and_each_item_once():
  found = streams.interleaved([(0.5, A), (0.5, B)])
  assert sorted(found) == sorted(A + B)
  assert found == streams.interleaved([(0.5, A), (0.5, B)])
  firsts = collections.Counter(item[0] for item in found[:16])
  assert min(firsts["a"], firsts["b"]) >= 4  # at equal rates while both last
  assert [item for item in found if item[0] == "a"] == A
