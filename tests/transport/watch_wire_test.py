"""Watching over real gRPC: what arrives, who may, and that no sampler loses its place for it."""

import threading
import time

import grpc
import pytest

from offpolicy_rl import types
from offpolicy_rl.transport import (
  bounds,
  checksum,
  client,
  protocol,
  security,
  server,
  watching,
  weights,
)
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport import trajectory_pb2_grpc as rpc
from tests.transport import fuzzing
from tests.transport.learners import Ledger, connect, handlers, ticket


class Watched:
  """A learner with one place for samplers; `calls` hold until `over`."""

  def __init__(self, watch=None, **protection):
    self.book, self.asked, self.over = Ledger(lease_seconds=5), [], threading.Event()
    asked = handlers(self.book, watch=watch or self.watch)
    identity = protocol.Identity("one", "run", "{}", "print")
    self.wire, self.address = server.start(
      "127.0.0.1:0",
      identity,
      asked,
      weights.WeightStore(),
      max_samplers=1,
      max_message_mb=4,
      **protection,
    )

  def watch(self, session: str, position: int, seconds: float) -> types.RunUpdate:
    self.asked.append((session, position))
    self.over.wait(seconds)
    return fuzzing.run_update()

  def stop(self):
    self.over.set()
    self.book.close()
    assert self.wire.stop(0).wait(10)


@pytest.fixture
def watched():
  watched = Watched()
  yield watched
  watched.stop()


def watcher(address: str, patience=5.0, **files) -> client.LearnerClient:
  return client.LearnerClient(
    address, "watch", reconnect_seconds=patience, credentials=security.Credentials(**files)
  )


def test_news_arrive_as_they_were_sent(watched):
  before = time.time()
  news, sent = watcher(watched.address).watch("one", 2**40, 0.0), fuzzing.run_update()
  assert watched.asked == [("one", 2**40)]
  assert before <= news.status.at <= time.time()
  assert news.status._replace(at=sent.status.at) == sent.status
  assert (news.reset, news.position) == (True, 2**40)
  ordered = lambda rows: [(row.kind, row.step, sorted(row.values.items())) for row in rows]
  assert repr(ordered(news.rows)) == repr(ordered(sent.rows))  # nan is not equal to itself


def test_a_watcher_takes_no_place_of_a_sampler_and_only_so_many_watch(watched):
  """All places of watchers are held; the one sampler there may be works as ever."""
  news = []
  look = lambda: news.append(watcher(watched.address).watch("", 0, 30.0))
  watching_ones = [threading.Thread(target=look) for _ in range(server.MAX_WATCHERS)]
  for thread in watching_ones:
    thread.start()
  end = time.monotonic() + 10
  while len(watched.asked) < server.MAX_WATCHERS and time.monotonic() < end:
    time.sleep(0.01)
  with pytest.raises(client.LearnerGone, match=f"{server.MAX_WATCHERS} watchers look at this run"):
    watcher(watched.address, patience=0.1).watch("", 0, 0.0)
  sampler = connect(watched.address)
  watched.book.add([ticket("a")])
  assert [t.ticket_id for t in sampler.lease(1)] == ["a"]
  sampler.heartbeat({}, {})
  assert sampler.leave() == 1 and not news
  watched.over.set()  # the run ends: all of them hear of it at once
  for thread in watching_ones:
    thread.join(5)
  assert len(news) == server.MAX_WATCHERS


def test_a_watcher_needs_the_learners_token(tmp_path):
  for name in ("token", "other"):
    (tmp_path / name).write_text(name * 8)
  watched = Watched(credentials=security.Credentials(token_file=str(tmp_path / "token")))
  with pytest.raises(client.Refused, match="authorization: missing"):
    watcher(watched.address).watch("", 0, 0.0)
  with pytest.raises(client.Refused, match="another token"):
    watcher(watched.address, token_file=str(tmp_path / "other")).watch("", 0, 0.0)
  known = watcher(watched.address, token_file=str(tmp_path / "token"))
  assert known.watch("", 0, 0.0).status.run_id == "run"
  watched.stop()


OURS = {"protocol": protocol.PROTOCOL}
BAD_REQUESTS = {
  "another protocol": (pb.WatchRequest(protocol=99), "the watcher speaks version 99"),
  "no session": (pb.WatchRequest(**OURS, session="\x1b[2J"), r"session: got '\\x1b"),
  "too long": (pb.WatchRequest(**OURS, wait_seconds=1e9), "wait_seconds: got"),
  "nan": (pb.WatchRequest(**OURS, wait_seconds=float("nan")), "wait_seconds: got nan"),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_bad_requests_are_refused_by_field(watched, kind):
  request, said = BAD_REQUESTS[kind]
  with (
    grpc.insecure_channel(watched.address) as channel,
    pytest.raises(grpc.RpcError, match=said) as error,
  ):
    rpc.LearnerStub(checksum.Channel(channel)).Watch(request)
  assert error.value.code().name in ("FAILED_PRECONDITION", "INVALID_ARGUMENT")
  assert not watched.asked


def broken(change) -> pb.WatchReply:
  reply = watching.encode_update(fuzzing.run_update())
  change(reply)
  return reply


BAD_REPLIES = {  # what a hostile learner might send to a person's terminal
  "run_id": lambda r: setattr(r, "run_id", "\x1b]0;evil\x07"),
  "about": lambda r: setattr(r, "about", "x" * 257),
  "ended": lambda r: setattr(r, "ended", "exploded"),
  "session": lambda r: setattr(r, "session", ""),
  "samplers.name": lambda r: setattr(r.samplers[0], "name", "\x1b[31m"),
  "samplers.silent_seconds": lambda r: setattr(r.samplers[0], "silent_seconds", float("nan")),
  "stats": lambda r: r.samplers[0].stats.update({"x y": 1.0}),
  "samplers": lambda r: r.samplers.extend([r.samplers[0]] * bounds.MAX_SAMPLERS),
  "rows": lambda r: r.rows.extend([r.rows[0]] * bounds.MAX_ROWS),
  "rows.kind": lambda r: setattr(r.rows[0], "kind", "\n"),
  "rows.values": lambda r: r.rows[0].values.update({f"v{i}": 0.0 for i in range(256)}),
  "tickets": lambda r: r.tickets.update({"\t": 1}),
}


@pytest.mark.parametrize("field", BAD_REPLIES)
def test_replies_out_of_bounds_are_refused_by_field(field):
  watching.decode_update(watching.encode_update(fuzzing.run_update()))
  with pytest.raises(bounds.WireError, match=f"^{field}: got"):
    watching.decode_update(broken(BAD_REPLIES[field]))


def test_what_is_too_much_is_cut_before_it_is_sent():
  news = fuzzing.run_update()
  wide = {f"v{j}": 0.0 for j in range(300)}
  many = [types.MetricsRow("train", i, wide if i == 1999 else {}) for i in range(2000)]
  samplers = tuple(news.status.samplers[0] for _ in range(1000))
  status = news.status._replace(run_id="a\x1b" * 999, samplers=samplers)
  found = watching.decode_update(watching.encode_update(news._replace(status=status, rows=many)))
  assert [row.step for row in found.rows] == list(range(2000 - bounds.MAX_ROWS, 2000))
  assert len(found.rows[-1].values) == bounds.MAX_VALUES
  assert len(found.status.samplers) == bounds.MAX_SAMPLERS
  assert found.status.run_id == "a?" * (bounds.MAX_TEXT // 2)


def test_a_metric_may_have_the_name_of_any_task_in_it():
  values = {"heldout/pass@1/jsonl:a#b": 0.5, "heldout/pass@1/tfds:x:1.*.*": 1.0}
  news = fuzzing.run_update()._replace(rows=[types.MetricsRow("heldout", 0, values)])
  assert watching.decode_update(watching.encode_update(news)).rows == news.rows
  hostile = watching.encode_update(news)
  hostile.rows[0].values.update({"\x1b[31m": 0.0})
  with pytest.raises(bounds.WireError, match="^rows.values: got"):
    watching.decode_update(hostile)


def test_a_learner_that_cannot_be_watched_says_so():
  running, address = server.start(
    "127.0.0.1:0",
    protocol.Identity("one", "run", "{}", "print"),
    handlers(Ledger(5)),
    None,
    max_samplers=1,
    max_message_mb=1,
  )
  with pytest.raises(client.Refused, match="can't be watched"):
    watcher(address).watch("", 0, 0.0)
  running.stop(0).wait()
