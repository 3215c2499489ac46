"""What comes over the wire is bounded, and refused by field, value and expectation."""

import math

import grpc
import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.transport import bounds, checksum, client, codec
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc
from offpolicy_rl.transport.protocol import PROTOCOL
from tests.transport.codec_test import a_group, a_ticket, a_trajectory

WHO = {"session": "one", "sampler_id": "me"}
TOO_MANY = {f"k{i}": 1.0 for i in range(65)}
BAD_REQUESTS = {
  "no credits": ("Lease", pb.LeaseRequest(**WHO), "credits: got 0, expected 1 to 4096"),
  "too many credits": ("Lease", pb.LeaseRequest(**WHO, credits=4097), "credits: got 4097"),
  "waiting for nan": (
    "Lease",
    pb.LeaseRequest(**WHO, credits=1, wait_seconds=math.nan),
    r"wait_seconds: got nan, expected a number in \[0, 3600\]",
  ),
  "waiting for ever": (
    "Lease",
    pb.LeaseRequest(**WHO, credits=1, wait_seconds=math.inf),
    "wait_seconds: got inf",
  ),
  "holding too many": (
    "Lease",
    pb.LeaseRequest(**WHO, credits=1, holding=["train/0"] * 4097),
    "holding: got '4097 entries', expected at most 4096",
  ),
  "holding no ticket": (
    "Lease",
    pb.LeaseRequest(**WHO, credits=1, holding=["train/0", ""]),
    "holding: got '', expected 1 to 256 printable ASCII characters",
  ),
  "holding a long one": (
    "Lease",
    pb.LeaseRequest(**WHO, credits=1, holding=["t" * 257]),
    "holding: got 't+",
  ),
  "holding lines": (
    "Lease",
    pb.LeaseRequest(**WHO, credits=1, holding=["a\nb"]),
    r"holding: got 'a\\nb'",
  ),
  "leaving without a name": (
    "Leave",
    pb.LeaveRequest(session="one"),
    "sampler_id: got '', expected",
  ),
  "no name": (
    "Hello",
    pb.HelloRequest(protocol=PROTOCOL),
    "sampler_id: got '', expected 1 to 128 letters",
  ),
  "a name of lines": (
    "Hello",
    pb.HelloRequest(protocol=PROTOCOL, sampler_id="a\nINFO all is well"),
    r"sampler_id: got 'a\\nINFO all is well'",
  ),
  "a path as name": (
    "Lease",
    pb.LeaseRequest(session="one", sampler_id="../../x", credits=1),
    r"sampler_id: got '../../x'",
  ),
  "a long name": (
    "Heartbeat",
    pb.HeartbeatRequest(session="one", sampler_id="x" * 129),
    r"sampler_id: got 'x+', expected",
  ),
  "many statistics": (
    "Heartbeat",
    pb.HeartbeatRequest(**WHO, stats=TOO_MANY),
    "stats: got '65 entries', expected at most 64",
  ),
  "statistics not finite": (
    "Heartbeat",
    pb.HeartbeatRequest(**WHO, stats={"rate": math.inf}),
    r"stats\[rate\]: got inf, expected a finite number",
  ),
  "progress of too many": (
    "Heartbeat",
    pb.HeartbeatRequest(**WHO, progress={f"train/{i}": 1 for i in range(4097)}),
    "progress: got '4097 entries', expected at most 4096",
  ),
  "progress of no ticket": (
    "Heartbeat",
    pb.HeartbeatRequest(**WHO, progress={"a\nb": 1}),
    r"progress: got 'a\\nb'",
  ),
  "declining no ticket": (
    "Decline",
    pb.DeclineRequest(**WHO, reasons={"": "x"}),
    "reasons: got ''",
  ),
  "declining at length": (
    "Decline",
    pb.DeclineRequest(**WHO, reasons={"train/0": "x" * 257}),
    r"reasons\[train/0\]: got 'x+",
  ),
  "declining with colours": (
    "Decline",
    pb.DeclineRequest(**WHO, reasons={"train/0": "\x1b[31m"}),
    r"reasons\[train/0\]: got '\\x1b",
  ),
  "two names in one": (
    "Heartbeat",
    pb.HeartbeatRequest(session="one", sampler_id="a~b~c"),
    "sampler_id: got 'a~b~c'",
  ),
  "statistics with odd names": (
    "Heartbeat",
    pb.HeartbeatRequest(**WHO, stats={"\x1b[31m": 1.0}),
    r"stats: got '\\x1b\[31m'",
  ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_requests_out_of_bounds_are_refused_by_field(learner, name):
  method, request, expected = BAD_REQUESTS[name]
  channel = grpc.insecure_channel(learner.address)
  with channel, pytest.raises(grpc.RpcError, match=expected) as error:
    getattr(rpc.LearnerStub(checksum.Channel(channel)), method)(request)
  assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
  assert learner.beats == []


def test_as_many_tickets_may_be_held_as_are_given_at_once():
  held = [f"train/{i}" for i in range(bounds.MAX_CREDITS)]
  bounds.check_request(pb.LeaseRequest(**WHO, credits=1, holding=held))


def test_a_long_session_is_not_sent_back_whole(learner):
  channel = grpc.insecure_channel(learner.address)
  with channel, pytest.raises(grpc.RpcError) as error:
    rpc.LearnerStub(checksum.Channel(channel)).Lease(pb.LeaseRequest(session="s" * 3_000_000))
  assert error.value.code() == grpc.StatusCode.ABORTED and len(error.value.details()) < 400


def test_a_sampler_checks_its_own_name():
  with pytest.raises(bounds.WireError, match="--name: got 'two words'"):
    client.LearnerClient("127.0.0.1:1", "two words")


def group_with(**changes) -> pb.Group:
  message = codec.encode_group(a_group())
  for name, value in changes.items():
    setattr(message, name, value)
  return message


def many_runs() -> pb.Group:
  message = group_with()
  message.versions.extend([pb.VersionRun(version=2, length=0)] * 10)
  return message


def empty_run() -> pb.Group:
  message = group_with()
  del message.versions[:]
  message.versions.extend([pb.VersionRun(version=2, length=0), pb.VersionRun(version=2, length=6)])
  return message


def many_completions() -> pb.Group:
  return pb.Group(ticket_id="a", lengths=[1] * 4097)


@pytest.mark.parametrize(
  ("message", "expected"),
  [
    (group_with(ticket_id="t" * 257), "group.ticket_id: got 't+"),
    (group_with(ticket_id="a\n"), r"group.ticket_id: got 'a\\n', expected 1 to 256 printable"),
    (many_completions(), "group.lengths: got 4097, expected 1 to 4096"),
    (many_runs(), "group.versions: got '14 runs', expected at most one per token, 6"),
    (empty_run(), "group.versions: got 'a run of 0 tokens'"),
  ],
)
def test_groups_out_of_bounds_are_refused_by_field(message, expected):
  with pytest.raises(bounds.WireError, match=expected) as error:
    codec.decode_group(message)
  assert len(str(error.value)) < 400


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    (
      {"prompt_tokens": np.arange(9, dtype=np.int32)},
      "prompt_tokens: got '9 tokens', .* at most 8",
    ),
    ({"prompt_tokens": np.array([50], np.int32)}, r"prompt_tokens: got 50, expected .*\[0, 50\)"),
    ({"prompt_tokens": np.array([-1], np.int32)}, "prompt_tokens: got -1"),
    ({"num_completions": 5}, "num_completions: got 5, expected 1 to 4"),
  ],
)
def test_tickets_beyond_the_samplers_limits_are_refused(changes, expected):
  limits = {"vocab_size": 50, "max_prompt_tokens": 8, "max_completions": 4}
  codec.check_ticket(a_ticket(), **limits)
  with pytest.raises(bounds.WireError, match=expected):
    codec.check_ticket(a_ticket(**changes), **limits)


@pytest.mark.parametrize("answer", ["", "x" * (5 << 20), "\u4e2d" * 1000, "\ud800"])
@pytest.mark.parametrize("prompt", [1, 70_000])
def test_no_ticket_is_larger_than_its_bound(prompt, answer):
  size = bounds.ticket_bytes(prompt, answer)
  if answer.isprintable() or not answer:  # else protobuf takes it no more
    ticket = a_ticket(
      ticket_id="t" * 256,
      prompt_tokens=np.zeros(prompt, np.int32),
      answer=answer,
      group_index=2**31 - 1,
      min_version=2**31 - 2,
      max_version=2**31 - 2,
      step=2**31 - 1,
    )
    message = codec.encode_ticket(ticket)
    assert size - 1024 < message.ByteSize() <= size - 512
    assert codec.decode_ticket(message).answer == answer


@pytest.mark.parametrize(("prompt", "characters"), [(4, 1 << 20), (1 << 18, 0), (1 << 17, 1 << 19)])
def test_a_prompt_that_fills_more_than_a_message_is_named(prompt, characters):
  answer = "7" * characters
  bounds.check_prompt(prompt, answer, 2, "x.jsonl:151")
  expected = (
    rf"x.jsonl:151: got {prompt} tokens and an answer of {characters} characters, .* 1048576"
  )
  with pytest.raises(bounds.WireError, match=expected + ": transport.max_message_mb = 1$"):
    bounds.check_prompt(prompt, answer, 1, "x.jsonl:151")


@pytest.mark.parametrize(
  ("completions", "tokens", "candidates"), [(1, 1, 0), (8, 5, 3), (16, 1000, 0), (16, 1000, 20)]
)
def test_no_group_is_larger_than_its_bound(completions, tokens, candidates):
  versions = np.arange(tokens, dtype=np.int32) % 2 + (2**31 - 2)  # a long run for every token
  most = np.zeros((tokens, candidates), np.int32)
  one = a_trajectory(
    tokens=np.zeros(tokens, np.int32),
    logprobs=np.zeros(tokens, np.float32),
    versions=versions,
    candidates=types.Candidates(most, most.astype(np.float32)) if candidates else None,
  )
  group = types.Group("t" * 256, (one,) * completions, completions)
  size = next(codec.push_requests([group], "s" * 128, "n" * 128)).ByteSize()
  assert size <= bounds.max_group_bytes(completions, tokens, candidates)
