"""Client and server over real gRPC: joining, refusing, retrying, restarting."""

import concurrent.futures
import dataclasses
import functools
import logging
import threading
import time

import grpc
import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.replay.ledger import Ledger
from offpolicy_rl.transport import checksum, client, protocol, receiver, server, weights
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc
from offpolicy_rl.types import PushStatus
from tests.transport.learners import LAYOUT, Learner, answer, believed, connect, handlers, ticket


def test_a_round_of_work(learner):
  wire = connect(learner.address)
  learner.book.add([ticket("a"), ticket("b"), ticket("c")])
  leased = wire.lease(2)
  assert [t.ticket_id for t in leased] == ["a", "b"]
  held = receiver.Receiver(LAYOUT)
  version, tensors = wire.pull_weights(0, 0, held)
  assert version == 0 and np.array_equal(tensors["w"], [0, 1, 2])
  assert wire.pull_weights(0, 0, held) == (0, None)
  statuses = [status for status, _ in wire.push([answer("a"), answer("b"), answer("a")])]
  assert statuses == [PushStatus.ACCEPTED, PushStatus.ACCEPTED, PushStatus.DUPLICATE]
  assert len(learner.book.take(["a", "b"], timeout=0)) == 2
  wire.heartbeat({"tokens_per_second": 7.0}, {"c": 40})
  assert learner.beats == [("me", {"tokens_per_second": 7.0}, {"c": 40})]
  learner.finished = True
  assert wire.lease(1) is None


def test_lease_returns_empty_when_there_is_nothing_in_time(learner):
  start = time.monotonic()
  assert connect(learner.address).lease(1, wait_seconds=0.3) == []
  assert time.monotonic() - start < 3


def test_another_protocol_version_is_refused_clearly(learner):
  with grpc.insecure_channel(learner.address) as channel:
    stub = rpc.LearnerStub(checksum.Channel(channel))
    with pytest.raises(grpc.RpcError) as error:
      stub.Hello(pb.HelloRequest(protocol=99, sampler_id="old"))
  assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
  assert f"the sampler speaks version 99, this learner {protocol.PROTOCOL}" in error.value.details()


def test_the_client_turns_a_protocol_mismatch_into_one_clear_error(learner, monkeypatch):
  release = type(protocol)("another release")
  vars(release).update(vars(protocol), PROTOCOL=99)
  monkeypatch.setattr(client, "protocol", release)
  with pytest.raises(client.Refused, match=f"speaks version 99, this learner {protocol.PROTOCOL}"):
    connect(learner.address)


def test_an_unknown_ticket_is_dropped_and_a_missing_version_refused_by_name(learner):
  wire = connect(learner.address)
  assert wire.push([answer("zzz")]) == [(PushStatus.UNKNOWN, "")]
  with pytest.raises(client.Refused, match=r"no version in \[3, 4\], there are \[0\]"):
    wire.pull_weights(3, 4, receiver.Receiver({}))


def test_a_malformed_group_is_refused_and_does_not_disturb_the_others(learner):
  wire = connect(learner.address)
  learner.book.add([ticket("a"), ticket("b")])
  bad = pb.Group(ticket_id="a", lengths=[1], finished=[True], rewards=[1.0], verdicts=[1.0])
  good = client.codec.encode_group(answer("b"))
  request = pb.PushRequest(session="one", sampler_id="me", groups=[bad, good])
  with grpc.insecure_channel(learner.address) as channel:
    [reply] = rpc.LearnerStub(checksum.Channel(channel)).Push(iter([request]))
  acks = reply.acks
  assert [a.verdict for a in acks] == [pb.VERDICT_REFUSED, pb.VERDICT_ACCEPTED]
  assert "group.tokens.dtype" in acks[0].reason
  assert learner.book.audit()["waiting"] == 1
  wire.close()


def test_a_ticket_that_can_not_be_answered_is_declined_with_the_reason(learner):
  """An empty question, and one that is beyond this sampler; the others are served."""
  wire, told = connect(learner.address), []
  learner.set_aside = lambda ticket, why: told.append((ticket.ticket_id, why))
  empty = dataclasses.replace(
    ticket("eval/a"), kind=types.EVAL, prompt_tokens=np.zeros(0, np.int32)
  )
  learner.book.add([empty, dataclasses.replace(ticket("eval/b"), kind=types.EVAL), ticket("c")])

  def check(ticket):
    if ticket.ticket_id == "eval/b":
      raise client.codec.WireError("ticket.prompt_tokens: got '9 tokens',\nexpected at most 8")

  assert [t.ticket_id for t in wire.lease(3, check=check)] == ["c"]
  assert sorted(told) == [
    ("eval/a", "me: ticket.prompt_tokens.shape: got (0,), expected at least one token"),
    ("eval/b", "me: ticket.prompt_tokens: got '9 tokens',?expected at most 8"),
  ]
  assert learner.book.audit()["declined"] == learner.book.audit()["set_aside"] == 2
  assert wire.lease(3, wait_seconds=0, holding=["c"]) == []


def test_a_ticket_whose_answer_is_refused_is_not_handed_to_that_sampler_again(learner):
  wire = connect(learner.address)
  learner.book.add([ticket("a"), ticket("b")])
  learner.book.heartbeat("other", {})
  assert [t.ticket_id for t in wire.lease(1)] == ["a"]
  bad = dataclasses.replace(answer("a").trajectories[0], verdict=float("nan"))
  learner.refuse = True
  [(status, _)] = wire.push([types.Group("a", (bad,))])
  assert status is PushStatus.REFUSED
  assert [t.ticket_id for t in wire.lease(2)] == ["b"]
  assert learner.book.audit()["declined"] == 1


def failing(groups):
  raise KeyError(groups[0].ticket_id)


def failing_later(groups):
  outcomes = concurrent.futures.Future()
  outcomes.set_exception(KeyError(groups[0].ticket_id))
  return outcomes


@pytest.mark.parametrize("finish", [failing, failing_later])
def test_a_group_that_the_learner_stumbles_over_is_tried_again(finish, caplog):
  """It must not look as if the learner had answered: groups and acknowledgements pair up."""
  caplog.set_level(logging.CRITICAL, "grpc")  # it reports our exceptions at length
  book, failures = Ledger(lease_seconds=5), []

  def finish_at_second(groups, _):
    if not failures:
      failures.append(groups[0].ticket_id)
      return finish(groups)
    return believed(book, groups)

  book.add([ticket("a"), ticket("b")])
  running, address = server.start(
    "127.0.0.1:0",
    protocol.Identity("one", "run", "{}", "print"),
    handlers(book, finish=finish_at_second),
    weights.WeightStore(),
    max_samplers=1,
    max_message_mb=4,
  )
  outcomes = connect(address).push([answer("a"), answer("b")])
  assert failures == ["a"] and [status for status, _ in outcomes] == [PushStatus.ACCEPTED] * 2
  assert book.audit()["waiting"] == 2
  running.stop(0).wait()


class Breaking(grpc.RpcError):
  """Acknowledgements of a push that takes too long: two, then its time is over."""

  def __init__(self, acks):
    self._acks = acks

  def __iter__(self):
    yield from (pb.PushReply(acks=[ack]) for ack in self._acks[:2])
    if len(self._acks) > 2:
      raise self

  cancel = trailing_metadata = lambda self: None
  code = lambda self: grpc.StatusCode.DEADLINE_EXCEEDED
  details = lambda self: "Deadline Exceeded"


def test_a_push_goes_on_behind_what_is_acknowledged(learner):
  """On a slow line a push may never get through in one call, but each call brings it on."""
  wire, sent = connect(learner.address, patience=0.0), []

  class Stub:
    def Push(self, requests, timeout):
      del timeout
      sent.append([group.ticket_id for request in requests for group in request.groups])
      return Breaking([pb.Ack(ticket_id=i, verdict=pb.VERDICT_ACCEPTED) for i in sent[-1]])

  wire._stub = Stub()
  outcomes = wire.push([answer(name) for name in "abcde"])
  assert [status for status, _ in outcomes] == [PushStatus.ACCEPTED] * 5
  assert list(map("".join, sent)) == ["abcde", "cde", "e"]


def test_what_a_sampler_does_not_hold_is_handed_out_again(learner):
  wire = connect(learner.address)
  learner.book.add([ticket(name) for name in "abc"])
  assert [t.ticket_id for t in wire.lease(2)] == ["a", "b"]
  assert [t.ticket_id for t in wire.lease(2, holding=["b"])] == ["a", "c"]
  assert [t.ticket_id for t in wire.lease(3, holding=["a", "b", "c"], wait_seconds=0)] == []


def test_a_sampler_that_leaves_or_joins_anew_gives_its_tickets_back(learner):
  wire = connect(learner.address)
  learner.book.add([ticket("a"), ticket("b")])
  assert len(wire.lease(2)) == 2
  assert wire.leave() == 2 and wire.leave() == 0
  assert learner.book.audit()["queued"] == 2
  assert wire.lease(2) == []
  wire.hello()
  assert len(wire.lease(2)) == 2
  wire.hello()
  assert learner.book.audit()["queued"] == 2


def large_group(name: str, tokens: int) -> types.Group:
  ones = np.ones(tokens, np.int32)
  return types.Group(name, (types.Trajectory(ones, -ones.astype(np.float32), ones * 0, True, 1.0),))


def test_an_oversize_message_is_refused_before_it_is_sent(learner):
  wire = connect(learner.address)
  wire.configure(10.0, 4)
  learner.book.add([ticket("a")])
  expected = r"ticket a: its group may take \d+ bytes, .* transport.max_message_mb = 4"
  with pytest.raises(client.Refused, match=expected):
    wire.push([large_group("a", 200_000)])
  assert learner.book.audit()["waiting"] == 0
  assert wire.push([large_group("a", 100_000)])[0].status is PushStatus.ACCEPTED


def test_the_server_takes_no_message_beyond_the_limit(learner):
  """Of a sampler that does not keep to it; others go on."""
  learner.book.add([ticket("a")])
  careless = connect(learner.address, patience=0.3)
  with pytest.raises(client.LearnerGone, match="RESOURCE_EXHAUSTED"):
    careless.push([large_group("a", 2_000_000)])
  assert learner.book.audit()["waiting"] == 0
  assert connect(learner.address).lease(1) is not None


def with_answer(name: str, size: int) -> types.Ticket:
  return dataclasses.replace(ticket(name), answer="7" * size)


def test_a_lease_whose_tickets_do_not_fit_one_message_comes_in_several(learner):
  """The limit of this learner is 4 MiB."""
  names = [str(i) for i in range(11)]
  learner.book.add([with_answer(name, 900_000) for name in names])
  wire, held, rounds = connect(learner.address), [], 0
  while len(held) < len(names):
    tickets = wire.lease(len(names), holding=held)
    assert tickets and all(len(t.answer) == 900_000 for t in tickets)
    held += [t.ticket_id for t in tickets]
    rounds += 1
  assert held == names and rounds == 3
  learner.book.add([with_answer("large", 3_000_000)])  # far more than a character limit of old
  assert [len(t.answer) for t in wire.lease(1, holding=held)] == [3_000_000]


@pytest.mark.parametrize(("limit_mb", "seconds"), [(2, 11.0), (64, 17.0), (1024, 257.0)])
def test_a_large_reply_is_waited_for(learner, monkeypatch, limit_mb, seconds):
  """A call whose time ends before its reply can arrive would be repeated for ever."""
  wire, given = connect(learner.address), []
  wire.configure(1.0, limit_mb)
  reply = pb.LeaseReply(run_finished=True)
  answered = lambda request, timeout: given.append(timeout) or reply
  monkeypatch.setattr(wire._stub, "Lease", answered)
  assert wire.lease(1, wait_seconds=1.0) is None and given == [seconds]


def test_a_ticket_that_fits_no_message_is_set_aside_and_the_others_go_out(learner):
  """Prompts are measured where they are read; if one slips through, the run goes on."""
  said = []
  learner.set_aside = lambda ticket, why: said.append((ticket.ticket_id, why))
  large = dataclasses.replace(with_answer("large", 5_000_000), kind=types.EVAL)
  learner.book.add([large, ticket("small")])
  wire, found = connect(learner.address), []
  for _ in range(3):
    found += [t.ticket_id for t in wire.lease(4, holding=found, wait_seconds=0.5)]
  assert found == ["small"]
  [(name, why)] = said
  assert name == "large" and "does not fit into a message of 4194304 bytes" in why


@pytest.mark.parametrize(("size_mb", "limit_mb"), [(3, 4), (70, 100)])
def test_what_a_sampler_is_told_first_may_be_as_large_as_the_key_says(size_mb, limit_mb):
  """A tokenizer can be; and the sampler knows the key only afterwards."""
  files = types.ModelFiles(*types.ModelFiles._fields)._replace(tokenizer="t" * (size_mb << 20))
  large = protocol.Identity("one", "run", "{}", "print", model_files=files)
  serve = functools.partial(
    server.start,
    "127.0.0.1:0",
    large,
    handlers(Ledger(lease_seconds=5)),
    weights.WeightStore(),
    max_samplers=1,
  )
  running, address = serve(max_message_mb=limit_mb)
  wire = client.LearnerClient(address, "me", reconnect_seconds=5)
  assert wire.hello().model_files == files
  running.stop(0).wait()
  expected = f"max_message_mb: got {size_mb}, expected at least {size_mb + 1}: the configuration"
  with pytest.raises(ValueError, match=expected):
    serve(max_message_mb=size_mb)


def test_client_first_then_server():
  probe = Learner()
  address = probe.address
  probe.stop()
  started = []
  threading.Timer(0.7, lambda: started.append(Learner(listen=address))).start()
  wire = connect(address, patience=20)
  assert wire.lease(1, wait_seconds=0) == []
  started[0].stop()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "learner..example:1"])
def test_a_learner_that_never_comes_ends_in_a_clear_error(address):
  with pytest.raises(client.LearnerGone, match=f"no learner at {address} for 1 s"):
    connect(address, patience=1)


def test_stop_interrupts_the_wait_for_a_lost_learner():
  wire = client.LearnerClient("127.0.0.1:1", "me", reconnect_seconds=60)
  threading.Timer(0.3, wire.stop).start()
  start = time.monotonic()
  with pytest.raises(client.LearnerGone):
    wire.hello()
  assert time.monotonic() - start < 10


def test_a_restarted_learner_is_noticed_and_joined_again():
  first = Learner("one")
  wire = connect(first.address, patience=20)
  first.stop()
  second = Learner("two", listen=first.address)
  second.book.add([ticket("a")])
  with pytest.raises(client.SessionLost, match="say Hello again"):
    wire.lease(1)
  with pytest.raises(client.SessionLost):
    wire.check_session()
  with pytest.raises(client.SessionLost):
    wire.push([answer("a")])  # an answer to the lost session never enters the new ledger
  wire.hello()
  wire.check_session()
  assert [t.ticket_id for t in wire.lease(1)] == ["a"]
  second.stop()


def test_many_samplers_share_the_tickets(learner):
  learner.book.add([ticket(str(i)) for i in range(60)])
  done = []

  def work():
    wire = client.LearnerClient(learner.address, f"s{threading.get_ident()}")
    wire.hello()
    while tickets := wire.lease(3, wait_seconds=0.2):
      names = [t.ticket_id for t in tickets]
      for name, (status, _) in zip(names, wire.push(list(map(answer, names))), strict=True):
        if status is PushStatus.ACCEPTED:
          done.append(name)

  threads = [threading.Thread(target=work) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  assert sorted(done, key=int) == [str(i) for i in range(60)]
  assert learner.book.audit()["duplicates"] == 0


def test_a_taken_port_is_an_error(learner):
  with pytest.raises(RuntimeError, match="bind"):
    Learner(listen=learner.address)
