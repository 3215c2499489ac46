"""What goes over the wire comes back equal; what is malformed is refused by field."""

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offpolicy_rl import types
from offpolicy_rl.config import keys as config_keys
from offpolicy_rl.transport import bounds, codec
from offpolicy_rl.transport import trajectory_pb2 as pb

TENSORS = {
  "int32 vector": np.arange(5, dtype=np.int32),
  "int32 extremes": np.array([-(2**31), 2**31 - 1], np.int32),
  "empty": np.zeros(0, np.int32),
  "float32 matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
  "float32 specials": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32),
  "float32 scalar": np.array(1.5, np.float32),
  "float32 rank 4": np.random.default_rng(0).normal(size=(2, 1, 3, 2)).astype(np.float32),
  "bfloat16": np.array([1.0, -2.5, 3e38], ml_dtypes.bfloat16),
  "not contiguous": np.arange(12, dtype=np.int32).reshape(3, 4).T,
  "zero rows": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_come_back_bit_for_bit(name):
  array = TENSORS[name]
  message = pb.Tensor.FromString(codec.encode_tensor(array).SerializeToString())
  back = codec.decode_tensor(message, "x", array.dtype, array.ndim)
  assert back.dtype == array.dtype and back.shape == array.shape
  assert back.tobytes() == array.tobytes()


def a_ticket(**changes) -> types.Ticket:
  ticket = types.Ticket(
    "train/3/1", types.TRAIN, 3, 97, np.array([5, 6], np.int32), '{"a": "é"}', -1, 4, 2, 0.75
  )
  return dataclasses.replace(ticket, **changes)


def check(group, candidates=0, episodes=False, **changes):
  asked = a_ticket(environment="a:World" * episodes, **changes)
  codec.check_group(group, asked, codec.Expected(50, 8, candidates), newest_version=3)


def a_trajectory(**changes) -> types.Trajectory:
  trajectory = types.Trajectory(
    tokens=np.array([4, 5, 1], np.int32),
    logprobs=np.array([-0.5, -1e-9, -30.0], np.float32),
    versions=np.array([2, 2, 3], np.int32),
    finished=True,
    reward=1.0,
  )
  return dataclasses.replace(trajectory, **changes)


def candidates(tokens=((4, 0), (49, 5), (1, 2)), logprobs=-1.5) -> types.Candidates:
  tokens = np.array(tokens, np.int32)
  return types.Candidates(tokens, np.full(tokens.shape, logprobs, np.float32))


def a_group(*trajectories) -> types.Group:
  return types.Group("train/3/1", trajectories or (a_trajectory(), a_trajectory(reward=0.0)), 1)


def same(a, b) -> bool:
  if isinstance(a, np.ndarray):
    return a.dtype == b.dtype and np.array_equal(a, b)
  if dataclasses.is_dataclass(a):
    return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
  if isinstance(a, tuple):
    return len(a) == len(b) and all(map(same, a, b))
  return a == b


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"kind": types.EVAL},
    {"temperature": 0.0},
    {"min_version": -1, "max_version": -1},
    {"answer": ""},
  ],
)
def test_tickets_come_back_equal(changes):
  ticket = a_ticket(**changes)
  message = pb.Ticket.FromString(codec.encode_ticket(ticket).SerializeToString())
  assert same(codec.decode_ticket(message), ticket)


def test_groups_come_back_equal():
  group = a_group()
  message = pb.Group.FromString(codec.encode_group(group).SerializeToString())
  assert same(codec.decode_group(message), group)


def test_marks_come_back_equal_and_odd_ones_are_refused():
  group = dataclasses.replace(a_group(), marks=types.Marks(1.5, 2.5, 3.5, 4.5, 1e9 + 0.001))
  message = codec.encode_group(group)
  assert same(codec.decode_group(message), group)
  for odd in (math.nan, math.inf, -1.0, 1e12):
    message.marks[1] = odd
    with pytest.raises(codec.WireError, match="group.marks: got .*expected 5 numbers from 0 to"):
      codec.decode_group(message)
  del message.marks[3:]
  with pytest.raises(codec.WireError, match="group.marks"):
    codec.decode_group(message)


def test_completions_of_unequal_length_come_back_equal():
  short = a_trajectory(
    candidates=candidates([[3, 7]]),
    tokens=np.array([7], np.int32),
    logprobs=np.array([-2.0], np.float32),
    versions=np.array([3], np.int32),
    finished=False,
    reward=0.25,
  )
  group = a_group(short, a_trajectory(candidates=candidates()), short)
  assert same(codec.decode_group(codec.encode_group(group)), group)


@pytest.mark.parametrize(
  ("tokens", "messages"), [([5] * 7, 1), ([200_000] * 2, 2), ([400_000, 5, 5, 249_980], 3)]
)
def test_groups_go_in_few_messages_none_of_them_needlessly_large(tokens, messages):
  groups = [
    types.Group(
      str(i),
      (
        a_trajectory(
          tokens=np.zeros(n, np.int32),
          logprobs=np.zeros(n, np.float32),
          versions=np.zeros(n, np.int32),
        ),
      ),
    )
    for i, n in enumerate(tokens)
  ]
  requests = list(codec.push_requests(groups, "s", "me"))
  assert len(requests) == messages
  assert {(r.session, r.sampler_id) for r in requests} == {("s", "me")}
  assert all(len(r.groups) == 1 or r.ByteSize() < 2 * 2**20 for r in requests)
  assert [g.ticket_id for r in requests for g in r.groups] == [g.ticket_id for g in groups]


def test_nothing_to_push_is_no_message():
  assert list(codec.push_requests([], "s", "me")) == []


@given(st.lists(st.integers(-2, 3), max_size=40))
def test_versions_are_run_length_coded_without_loss(versions):
  array = np.array(versions, np.int32)
  runs = codec._encode_versions(array)
  assert len(runs) == (0 if not versions else 1 + np.count_nonzero(np.diff(array)))
  assert np.array_equal(codec._decode_versions(runs, array.size, "v"), array)


def tensor(values, dtype) -> pb.Tensor:
  return codec.encode_tensor(np.array(values, dtype))


MALFORMED = {
  "wrong dtype": (
    lambda g: g.tokens.CopyFrom(tensor([1] * 6, np.float32)),
    "tokens.dtype: got 'float32'",
  ),
  "unknown dtype": (lambda g: setattr(g.tokens, "dtype", 9), "tokens.dtype: got 9"),
  "wrong rank": (lambda g: g.tokens.shape.append(1), r"tokens.shape: got \(6, 1\), expected 1 dim"),
  "short data": (
    lambda g: setattr(g.tokens, "data", b"abc"),
    "tokens.data: got '3 bytes', expected '?24",
  ),
  "huge shape": (lambda g: g.tokens.shape.__setitem__(0, 2**32 - 1), "tokens.data: got '24 bytes'"),
  "logprobs missing": (lambda g: g.ClearField("logprobs"), "logprobs.dtype: got 0"),
  "fewer logprobs": (
    lambda g: g.logprobs.CopyFrom(tensor([-1.0], np.float32)),
    r"logprobs.shape: got \(1,\)",
  ),
  "no completion": (lambda g: g.ClearField("lengths"), "lengths: got 0, expected 1 to"),
  "lengths too long": (
    lambda g: g.lengths.__setitem__(0, 4),
    "lengths: got '7 tokens in all', expected 6",
  ),
  "a reward missing": (lambda g: g.rewards.pop(), "rewards: got '1 values', expected '?2, as in"),
  "more ends": (lambda g: g.finished.append(True), "finished: got '3 values', expected '?2, as in"),
  "versions missing": (lambda g: g.ClearField("versions"), "versions: got 'runs of 0 tokens"),
  "candidates without logprobs": (
    lambda g: g.candidate_tokens.CopyFrom(tensor([[1]] * 6, np.int32)),
    "candidate_logprobs.dtype: got 0",
  ),
  "candidates of fewer tokens": (
    lambda g: (
      g.candidate_tokens.CopyFrom(tensor([[1]] * 5, np.int32)),
      g.candidate_logprobs.CopyFrom(tensor([[-1]] * 5, np.float32)),
    ),
    r"candidate_tokens.shape: got \(5, 1\), expected '?\(6, 1\)",
  ),
  "no candidate of any token": (
    lambda g: (
      g.candidate_tokens.CopyFrom(tensor(np.zeros((6, 0)), np.int32)),
      g.candidate_logprobs.CopyFrom(tensor(np.zeros((6, 0)), np.float32)),
    ),
    r"candidate_tokens.shape\[1\]: got 0, expected 1 to 4096",
  ),
  "fewer logprobs of candidates": (
    lambda g: (
      g.candidate_tokens.CopyFrom(tensor([[1, 2]] * 6, np.int32)),
      g.candidate_logprobs.CopyFrom(tensor([[-1]] * 6, np.float32)),
    ),
    r"candidate_logprobs.shape: got \(6, 1\), expected '?\(6, 2\)",
  ),
  "candidates in one row": (
    lambda g: g.candidate_tokens.CopyFrom(tensor([1] * 6, np.int32)),
    r"candidate_tokens.shape: got \(6,\), expected 2 dim",
  ),
  "too many versions": (
    lambda g: g.versions.add(version=1, length=2**31),
    "versions: got 'runs of",
  ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_groups_are_refused_by_field(name):
  spoil, expected = MALFORMED[name]
  message = codec.encode_group(a_group())
  spoil(message)
  with pytest.raises(codec.WireError, match="group." + expected):
    codec.decode_group(message)


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({"temperature": float("nan")}, "ticket.temperature"),
    ({"temperature": -1.0}, "ticket.temperature"),
    ({"num_completions": 0}, "ticket.num_completions"),
    ({"ticket_id": ""}, "ticket.ticket_id"),
    ({"min_version": 5}, "ticket.min_version: got 5, expected at most 4"),
    ({"prompt_tokens": np.zeros(0, np.int32)}, "ticket.prompt_tokens.shape"),
  ],
)
def test_malformed_tickets_are_refused_by_field(changes, expected):
  with pytest.raises(codec.WireError, match=expected.replace("'", "'?")):
    codec.decode_ticket(codec.encode_ticket(a_ticket(**changes)))


BAD_ANSWERS = {
  "one completion too few": (a_group(a_trajectory()), "group.trajectories: got 1"),
  "no tokens": (
    a_group(a_trajectory(), a_trajectory(tokens=np.zeros(0, np.int32))),
    r"\[1\].tokens: got '0 tokens'",
  ),
  "token out of vocabulary": (
    a_group(a_trajectory(), a_trajectory(tokens=np.array([4, 50, 1], np.int32))),
    r"\[1\].tokens: got 50",
  ),
  "negative token": (
    a_group(a_trajectory(), a_trajectory(tokens=np.array([4, -1, 1], np.int32))),
    r"\[1\].tokens: got -1",
  ),
  "positive logprob": (
    a_group(a_trajectory(logprobs=np.array([-1, 0.1, -1], np.float32)), a_trajectory()),
    r"\[0\].logprobs: got 0.1",
  ),
  "logprob not a number": (
    a_group(a_trajectory(logprobs=np.array([-1, np.nan, -1], np.float32)), a_trajectory()),
    r"\[0\].logprobs: got nan",
  ),
  "infinite logprob": (
    a_group(a_trajectory(logprobs=np.array([-np.inf, -1, -1], np.float32)), a_trajectory()),
    r"\[0\].logprobs: got -inf",
  ),
  "reward missing": (
    a_group(a_trajectory(reward=float("nan")), a_trajectory()),
    r"\[0\].reward: got nan",
  ),
  "a logprob that no draw has": (
    a_group(a_trajectory(logprobs=np.array([-1, -3e38, -1], np.float32)), a_trajectory()),
    r"\[0\].logprobs: got -3.*e\+38, expected numbers from -10000 to 0",
  ),
  "a reward beyond sense": (
    a_group(a_trajectory(), a_trajectory(reward=3e38)),
    r"\[1\].reward: got 3e\+38, expected a number from -4e\+06 to 4e\+06",
  ),
  "an infinite reward": (a_group(a_trajectory(), a_trajectory(reward=-np.inf)), "reward: got -inf"),
  "a verdict beyond sense": (
    a_group(a_trajectory(), a_trajectory(verdict=1.1e6)),
    r"\[1\].verdict: got 1100000.0, expected a number from -1e\+06 to 1e\+06",
  ),
  "verdict missing": (
    a_group(a_trajectory(), a_trajectory(verdict=float("nan"))),
    r"\[1\].verdict: got nan",
  ),
  "version not published yet": (
    a_group(a_trajectory(versions=np.array([2, 2, 4], np.int32)), a_trajectory()),
    r"\[0\].versions: got 4, expected in \[-1, 3\]",
  ),
  "version not admitted": (
    a_group(a_trajectory(versions=np.array([2, 2, 5], np.int32)), a_trajectory()),
    r"\[0\].versions: got 5, expected in \[-1, 3\]",
  ),
  "too long": (
    a_group(
      a_trajectory(
        tokens=np.ones(9, np.int32), logprobs=-np.ones(9, np.float32), versions=np.ones(9, np.int32)
      ),
      a_trajectory(),
    ),
    r"\[0\].tokens: got '9 tokens'",
  ),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_answers_that_do_not_fit_their_ticket_are_refused(name):
  group, expected = BAD_ANSWERS[name]
  with pytest.raises(codec.WireError, match=expected):
    check(group)


BAD_CANDIDATES = {
  "none": (None, r"\[1\].candidates: got 0, expected sampler.top_logprobs = 2 of each token"),
  "too few": (candidates([[4], [5], [1]]), r"\[1\].candidates: got 1"),
  "out of vocabulary": (candidates([[4, 5], [50, 5], [1, 2]]), r"\[1\].candidates.tokens: got 50"),
  "negative": (candidates([[4, 5], [-1, 5], [1, 2]]), r"candidates.tokens: got -1"),
  "not a number": (candidates(logprobs=np.nan), r"\[1\].candidates.logprobs: got nan"),
  "infinite": (candidates(logprobs=-np.inf), r"\[1\].candidates.logprobs: got -inf"),
  "positive": (candidates(logprobs=0.5), r"\[1\].candidates.logprobs: got 0.5"),
}


@pytest.mark.parametrize("name", BAD_CANDIDATES)
def test_candidates_that_were_not_asked_for_or_make_no_sense_are_refused(name):
  found, expected = BAD_CANDIDATES[name]
  good = a_trajectory(candidates=candidates())
  check(a_group(good, good), candidates=2)
  with pytest.raises(codec.WireError, match=expected):
    check(a_group(good, a_trajectory(candidates=found)), candidates=2)


def test_nobody_may_send_candidates_unasked():
  group = a_group(a_trajectory(candidates=candidates()), a_trajectory(candidates=candidates()))
  with pytest.raises(codec.WireError, match=r"\[0\].candidates: got 2, .*top_logprobs = 0"):
    check(group)
  with pytest.raises(codec.WireError, match=r"\[0\].candidates: got 2, .*top_logprobs = 0"):
    check(group, candidates=2, kind=types.EVAL)
  check(a_group(), candidates=2, kind=types.EVAL)


def test_a_good_answer_passes():
  check(a_group())
  extreme = a_trajectory(
    logprobs=np.full(3, types.MIN_LOGPROB, np.float32),
    reward=-bounds.MAX_REWARD,
    verdict=types.MAX_VERDICT,
  )
  check(a_group(extreme, extreme))


def test_the_largest_values_leave_room_in_float32():
  """Squares of sums over the longest completions, and of rewards over the largest batches."""
  most = float(np.finfo(np.float32).max)
  assert most > (1e5 * types.MIN_LOGPROB) ** 2 * 1e6
  assert most > (2 * bounds.MAX_REWARD) ** 2 * 1e6
  keys = ("task.format_reward", "task.length_weight")
  shaped = sum(1e6 for key in keys if config_keys.all_keys()[key].is_good(1e6))
  assert types.MAX_VERDICT + shaped <= bounds.MAX_REWARD
  assert not any(config_keys.all_keys()[key].is_good(1.1e6) for key in keys)


def test_the_verdict_travels_beside_the_shaped_reward():
  group = a_group(a_trajectory(reward=1.25, verdict=1.0), a_trajectory(reward=-0.5, verdict=0.0))
  back = codec.decode_group(codec.encode_group(group), "me~1")
  assert [t.verdict for t in back.trajectories] == [1.0, 0.0]
  assert [t.reward for t in back.trajectories] == [1.25, -0.5]
  assert back.sampler_id == "me~1"
  assert a_trajectory(verdict=None).verdict == 1.0  # unshaped: the reward


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 300))
def test_random_bytes_and_damaged_messages_raise_only_wire_errors(noise, position):
  whole = codec.encode_group(a_group()).SerializeToString()
  for data in (noise, whole[:position] + noise[:3] + whole[position + 3 :]):
    try:
      message = pb.Group.FromString(data)
    except Exception as error:
      assert type(error).__name__ == "DecodeError"  # protobuf's own refusal
      continue
    try:
      codec.check_group(
        codec.decode_group(message), a_ticket(), codec.Expected(50, 8), newest_version=99
      )
    except codec.WireError:
      pass
