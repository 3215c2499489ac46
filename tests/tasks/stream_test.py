"""Prompt streams: pure functions of seed and index, and mixtures at exact rates."""

import collections

import pytest

from offpolicy_rl.tasks import stream as streams
from offpolicy_rl.tasks.stream import BLOCK, MixedStream, PromptStream
from offpolicy_rl.types import FIRST_SPARE


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


def test_rare_members_make_the_blocks_larger():
  mixed = MixedStream([(0.9995, A), (0.0005, B)], seed=5)
  items = [mixed[i][0] for i in range(4000)]
  assert items[:2000].count("b") == items[2000:].count("b") == 1


class Source:
  """Rows 0 ... n - 1; every `step`-th is usable, and none of `bad`."""

  def __init__(self, rows: int, step: int = 1, bad: range = range(0)):
    self.opened, self.rows, self.step, self.bad = [], rows, step, bad

  def streamed(self) -> streams.Streamed:
    usable = lambda i: i % self.step == 0 and i not in self.bad
    return streams.Streamed(self._open, lambda rows: list(filter(usable, rows)))

  def _open(self, start: int):
    self.opened.append(start)
    return iter(range(start, self.rows))


def test_a_streamed_source_is_shuffled_within_blocks():
  source = Source(5 * BLOCK)
  stream = streams.BlockStream(source.streamed(), seed=3)
  for block in range(5):
    rows = range(block * BLOCK, block * BLOCK + BLOCK)
    found = [stream[i] for i in rows]
    assert sorted(found) == list(rows) != found
  assert source.opened == [0]  # one pass, without looking back
  assert [streams.BlockStream(source.streamed(), 4)[i] for i in range(9)] != [
    stream[i] for i in range(9)
  ]


@pytest.mark.parametrize("rows", [7, BLOCK - 1, 2 * BLOCK, 3 * BLOCK + 5])
def test_a_resumed_stream_finds_every_prompt_again(rows):
  ends = [0, 1, rows - 1, rows, 2 * rows + 1, 9 * BLOCK + 7, FIRST_SPARE, FIRST_SPARE + rows]
  through = streams.BlockStream(Source(rows, step=3).streamed(), seed=3)
  expected = {i: through[i] for i in range(10 * BLOCK)}
  for start in ends:
    source = Source(rows, step=3)
    stream = streams.BlockStream(source.streamed(), seed=3)
    assert stream[start] == through[start]
    assert [stream[i] for i in ends if i in expected] == [
      expected[i] for i in ends if i in expected
    ]


def test_unusable_rows_are_replaced_and_empty_blocks_passed_over():
  source = Source(4 * BLOCK, bad=range(BLOCK, 3 * BLOCK - 2))
  stream = streams.BlockStream(source.streamed(), seed=3)
  assert {stream[i] for i in range(BLOCK, 2 * BLOCK)} == {3 * BLOCK - 2, 3 * BLOCK - 1}
  even = streams.BlockStream(source.streamed().where(lambda i: i % 2 == 0), seed=3)
  assert {even[i] for i in range(BLOCK)} == set(range(0, BLOCK, 2))
  with pytest.raises(ValueError, match="without a usable one"):
    streams.BlockStream(Source(5, bad=range(5)).streamed(), seed=3)[0]
  with pytest.raises(ValueError, match="examples: got none"):
    streams.BlockStream(Source(0).streamed(), seed=3)[0]


def test_listed_and_streamed_members_mix_and_spares_begin_anew():
  source = Source(3 * BLOCK)
  members = [(0.75, source.streamed()), (0.25, A)]
  mixed = MixedStream(members, seed=5)
  items = [mixed[i] for i in range(8000)]
  streamed = [item for item in items if isinstance(item, int)]
  assert len(streamed) == 6000 and sorted(streamed[:BLOCK]) == list(range(BLOCK))
  spares = [mixed[FIRST_SPARE + i] for i in range(2000)]
  assert max(item for item in spares if isinstance(item, int)) < BLOCK
  assert source.opened == [0, 0]


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
