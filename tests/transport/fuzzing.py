"""Damaged and nonsensical messages, and a learner to send them to."""

import collections
import concurrent.futures
import contextlib
import math
import random
import zlib

import grpc
import numpy as np
from google.protobuf import message as message_lib
from google.protobuf.descriptor import FieldDescriptor

from offpolicy_rl import types
from offpolicy_rl.replay.ledger import Ledger
from offpolicy_rl.transport import checksum, client, codec, protocol, receiver, server, weights
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.types import PushStatus
from tests.fuzzing import damage
from tests.transport import learners

SESSION, VOCAB, MAX_TOKENS, CANDIDATES = "one", 50, 8, 2
NEWEST = 1  # version that the learner has published
EXPECTED = codec.Expected(VOCAB, MAX_TOKENS, CANDIDATES)
LAYOUT: receiver.Layout = {"w": ((40,), np.dtype(np.float32))}  # of its weights
_METHODS = pb.DESCRIPTOR.services_by_name["Learner"].methods
REPLIES = {method.name: getattr(pb, method.output_type.name) for method in _METHODS}
DAMAGED = "damaged"  # how a call should end of which a message had no right checksum
PATH = f"/{protocol.SERVICE}/"
SAMPLERS = 2
CALL_THREADS = 3 * SAMPLERS + 2 + server.MAX_WATCHERS  # at most; started as they are needed
TEXTS = ["", "me", SESSION, "train/0", "../../etc/passwd", "x" * 5000, "\0\n\x1b[31m", "é" * 200]
NUMBERS = [0, 1, 2, 3, 7, 255, 4097, 2**31 - 1, 2**32 - 1]
FLOATS = [0.0, -0.5, 1.0, -1e-9, math.nan, math.inf, -math.inf, 3e38]
# Four bytes in a tensor, read as float32 or int32.
WORDS = [
  *np.array([math.nan, math.inf, -math.inf, -3e38, 0.25, -0.25, -0.0], np.float32)
  .view(np.int32)
  .tolist(),
  *(-(2**31), -1, 0, 49, 50, 2**31 - 1),
]
VALUES = {
  FieldDescriptor.CPPTYPE_INT32: [-(2**31), -2, -1, *NUMBERS[:-1]],
  FieldDescriptor.CPPTYPE_UINT32: NUMBERS,
  FieldDescriptor.CPPTYPE_UINT64: [*NUMBERS, 2**64 - 1],
  FieldDescriptor.CPPTYPE_FLOAT: FLOATS,
  FieldDescriptor.CPPTYPE_DOUBLE: [*FLOATS, 1e308],
  FieldDescriptor.CPPTYPE_BOOL: [False, True],
  FieldDescriptor.CPPTYPE_ENUM: [0, 1, 2, 3, 9],
}


def ticket(name: str) -> types.Ticket:
  """Two completions, versions 0 to 2, of which there are 0 and 1 yet."""
  prompt = np.array([3, 4], np.int32)
  return types.Ticket(name, types.TRAIN, 0, 0, prompt, '{"a": 1}', 0, 2, 2, 1.0)


def answer(name: str) -> types.Group:
  """A good one to `ticket(name)`."""
  tokens = np.array([5, 6, 1], np.int32)
  logprobs = np.array([-0.5, -1e-9, -30.0], np.float32)
  ids = np.array([[5, 7], [8, 49], [0, 1]], np.int32)
  likeliest = types.Candidates(ids, np.float32([[-0.5, -1], [-0.1, -9], [-0.6, -30]]))
  one = types.Trajectory(
    tokens, logprobs, np.array([0, 0, 1], np.int32), True, 1.0, candidates=likeliest
  )
  return types.Group(name, (one, one))


def run_update() -> types.RunUpdate:
  """Of a run that two samplers serve."""
  samplers = tuple(types.SamplerStatus(name, 0.5, {"version": 3.0}) for name in ("a", "b"))
  status = types.RunStatus(SESSION, "run", "sums", 1.5e9, "", 40, {"queued": 2}, samplers)
  rows = [types.MetricsRow("train", step, {"reward": 0.5, "loss": math.nan}) for step in (3, 4)]
  return types.RunUpdate(status, True, 2**40, rows)


def weight_store() -> weights.WeightStore:
  """Versions 0 and 1, of which a few values differ: there is a delta."""
  store = weights.WeightStore()
  for version in range(NEWEST + 1):
    array = np.arange(40, dtype=np.float32)
    array[:3] += version
    store.put(version, {"w": array})
  return store


def stream(store, held: receiver.Receiver, low: int = 0, high: int = 99) -> list[bytes]:
  """What a receiver is sent."""
  request = held.fill_in(pb.WeightsRequest(min_version=low, max_version=high))
  return list(store.answer(request))


def receive(held: receiver.Receiver, chunks: list[bytes]):
  """What `LearnerClient.pull_weights` does with the bytes of one stream."""
  parse = lambda data: pb.WeightsChunk.FromString(checksum.verify_chunk(data))
  return held.receive(parse(data) for data in chunks)


def _pulls(who: dict[str, str]) -> list[pb.WeightsRequest]:
  """For everything, for what changed since version 0, and for the rest of a broken stream."""
  store, held, broken = weight_store(), receiver.Receiver(LAYOUT), receiver.Receiver(LAYOUT)
  receive(held, stream(store, held, high=0))
  with contextlib.suppress(ConnectionError):
    broken.receive(_break_off(stream(store, broken)))
  pull = lambda holder: holder.fill_in(pb.WeightsRequest(**who, max_version=NEWEST))
  return [pull(receiver.Receiver(LAYOUT)), pull(held), pull(broken)]


def _break_off(chunks: list[bytes]):
  yield pb.WeightsChunk.FromString(checksum.verify_chunk(chunks[0]))
  yield pb.WeightsChunk(data=pb.WeightsChunk.FromString(chunks[1]).data[:30])
  raise ConnectionError


def good_requests(names: list[str]) -> dict[str, list[message_lib.Message]]:
  """What a sampler would send, by method."""
  who = {"session": SESSION, "sampler_id": "me"}
  return {
    "Hello": [pb.HelloRequest(protocol=protocol.PROTOCOL, sampler_id="me")],
    "Lease": [pb.LeaseRequest(**who, credits=2, wait_seconds=0.01, holding=names[:2])],
    "Heartbeat": [
      pb.HeartbeatRequest(**who, stats={"tokens_per_second": 3.0}, progress={names[0]: 7})
    ],
    "Decline": [pb.DeclineRequest(**who, reasons={names[0]: "too long"})],
    "Leave": [pb.LeaveRequest(**who)],
    "PullWeights": _pulls(who),
    "Watch": [
      pb.WatchRequest(protocol=protocol.PROTOCOL, session=SESSION, position=9, wait_seconds=0.01)
    ],
    "Push": [*codec.push_requests([answer(name) for name in names], SESSION, "me")]
    + [pb.PushRequest(**who, groups=[codec.encode_group(answer(name))]) for name in names],
  }


def random_message(rng: random.Random, kind: type, depth: int = 0) -> message_lib.Message:
  """A well-formed message whose fields make no sense together."""
  made = kind()
  for field in made.DESCRIPTOR.fields:
    if rng.random() < 0.3:
      continue
    if field.message_type and field.message_type.GetOptions().map_entry:
      getattr(made, field.name)[rng.choice(TEXTS)] = _map_value(rng, field)
    elif field.is_repeated:
      values = [_value(rng, field, depth) for _ in range(rng.choice([0, 1, 2, 3, 70]))]
      getattr(made, field.name).extend(values)
    elif field.message_type:
      getattr(made, field.name).CopyFrom(_value(rng, field, depth))
    else:
      setattr(made, field.name, _value(rng, field, depth))
  if hasattr(made, "session") and rng.random() < 0.8:  # most get past the first check
    made.session = SESSION
  if hasattr(made, "sampler_id") and rng.random() < 0.8:
    made.sampler_id = "me"
  return made


def _map_value(rng: random.Random, field):
  return _value(rng, field.message_type.fields_by_name["value"], 0)


def _value(rng: random.Random, field, depth: int):
  if field.message_type:
    kind = getattr(pb, field.message_type.name)
    return kind() if depth > 3 else random_message(rng, kind, depth + 1)
  if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
    if field.type == FieldDescriptor.TYPE_BYTES:
      return rng.randbytes(rng.choice([0, 1, 4, 12, 300]))
    return rng.choice(TEXTS)
  return rng.choice(VALUES[field.cpp_type])


def spoil(rng: random.Random, message: message_lib.Message) -> None:
  """Replaces one value somewhere inside by an odd one of its type; all others stay good."""
  if isinstance(message, pb.Tensor):
    values = np.frombuffer(message.data, np.int32).copy()
    values[rng.randrange(values.size)] = rng.choice(WORDS)
    message.data = values.tobytes()
    return
  field, found = rng.choice(message.ListFields())
  if field.message_type and field.message_type.GetOptions().map_entry:
    found[rng.choice(TEXTS)] = _map_value(rng, field)
  elif field.message_type:
    spoil(rng, rng.choice(found) if field.is_repeated else found)
  elif field.is_repeated:
    found[rng.randrange(len(found))] = _value(rng, field, 0)
  else:
    setattr(message, field.name, _value(rng, field, 0))


def request(rng: random.Random, good: list[message_lib.Message]) -> bytes:
  """One message for a method whose good requests are `good`: nonsense, spoilt or damaged."""
  way = rng.random()
  if way < 0.3:
    return random_message(rng, type(good[0])).SerializeToString()
  if way < 0.6:
    message = type(good[0])()
    message.CopyFrom(rng.choice(good))
    spoil(rng, message)
    return message.SerializeToString()
  first, second = (rng.choice(good).SerializeToString() for _ in range(2))
  return damage(rng, first, second)


def is_good(group: types.Group) -> bool:
  """Judged anew and slowly, value by value: may this answer a ticket of ours?"""
  for t in group.trajectories:
    rows = list(zip(t.tokens, t.logprobs, t.versions, strict=True))
    if not (1 <= len(rows) <= MAX_TOKENS and -4e6 <= t.reward <= 4e6 and -1e6 <= t.verdict <= 1e6):
      return False
    if t.candidates is None or t.candidates.tokens.shape != (len(rows), CANDIDATES):
      return False
    for token, logprob in zip(t.candidates.tokens.flat, t.candidates.logprobs.flat, strict=True):
      if not (0 <= token < VOCAB and -1e4 <= logprob <= 0):
        return False
    for token, logprob, version in rows:
      if not (0 <= token < VOCAB and -1e4 <= logprob <= 0 and 0 <= version <= NEWEST):
        return False
  return len(group.trajectories) == 2


def resident_mb() -> float:
  """Resident memory of this process."""
  with open("/proc/self/statm") as file:
    return int(file.read().split()[1]) * 4096 / 2**20


class Target:
  """A learner's server and ledger; it counts groups that should never have got in."""

  def __init__(self):
    self.made = 20
    self.names = [f"train/{i}" for i in range(self.made)]
    self.book = Ledger(lease_seconds=5, set_aside=self._other)
    self.book.add(map(ticket, self.names))
    self.bad_groups = 0
    handlers = learners.handlers(
      self.book, lease=self._lease, finish=self._finish, watch=lambda *_: run_update()
    )
    identity = protocol.Identity(SESSION, "run", "{}", "print")
    self.wire, self.address = server.start(
      "127.0.0.1:0", identity, handlers, weight_store(), max_samplers=SAMPLERS, max_message_mb=1
    )

  def _other(self, declined: types.Ticket, why: str) -> types.Ticket:
    """In place of a ticket that fuzzed calls declined."""
    if declined.ticket_id in self.names:
      self.names.remove(declined.ticket_id)
    self.names.append(f"train/{self.made}")
    self.made += 1
    return ticket(self.names[-1])

  def _lease(self, sampler: str, limit: int, wait: float, holding: set[str]):
    return self.book.lease(sampler, limit, min(wait, 0.01), holding)

  def _finish(self, groups: list, _: bytes) -> concurrent.futures.Future:
    return learners.done([self._finish_one(group) for group in groups])

  def _finish_one(self, group: types.Group | codec.WireError) -> types.PushOutcome:
    if isinstance(group, codec.WireError):
      return learners.outcome(self.book, group)
    asked = self.book.ticket(group.ticket_id)
    if asked is not None:
      try:
        codec.check_group(group, asked, EXPECTED, newest_version=NEWEST)
      except codec.WireError as error:
        return learners.outcome(self.book, error)
    status = self.book.finish(group, NEWEST)
    if status is PushStatus.ACCEPTED:
      self.bad_groups += not is_good(group)
    return types.PushOutcome(status)

  def works(self, name: str) -> bool:
    """Whether a good sampler can join, lease, pull and have a group accepted; `name` is new."""
    self.book.add([ticket(name)], first=True)
    sampler = client.LearnerClient(self.address, "good", reconnect_seconds=5)
    sampler.hello()
    leased = [t.ticket_id for t in sampler.lease(1)]
    held = receiver.Receiver(LAYOUT)
    pulled = [sampler.pull_weights(version, version, held)[0] for version in (0, NEWEST)]
    outcomes = sampler.push([answer(ticket_id) for ticket_id in leased])
    sampler.leave()
    sampler.close()
    statuses = [outcome.status for outcome in outcomes]
    # A ticket that a fuzzed call leased may expire just now; the ledger puts it before all others.
    taken = self.book.take([name], timeout=0) if leased == [name] else leased
    return statuses == [PushStatus.ACCEPTED] and bool(taken) and pulled == [0, NEWEST]

  def close(self) -> bool:
    """Ends the server; False when it hangs."""
    self.book.close()
    return self.wire.stop(0).wait(10)


def with_checksum(rng: random.Random, data: bytes) -> bytes:
  """With a right checksum, so that it gets past the check; some without, or damaged after that."""
  way = rng.random()
  if way < 0.06:
    return data
  return damage(rng, checksum.add(data), data) if way < 0.12 else checksum.add(data)


def is_intact(data: bytes) -> bool:
  """Whether the server may look at it; damage need not change anything."""
  return data[-5:] == b"\x7d" + zlib.crc32(data[:-5]).to_bytes(4, "little")


def bombard(target: Target, rng: random.Random, count: int) -> collections.Counter:
  """Sends `count` calls of raw bytes -> how many ended how. A hang counts as DEADLINE_EXCEEDED."""
  good = good_requests(target.names)
  outcomes = collections.Counter()
  with grpc.insecure_channel(target.address) as channel:
    for _ in range(count):
      method = rng.choice(list(good))
      number = rng.choice([1, 1, 3]) if method == "Push" else 1
      messages = [with_checksum(rng, request(rng, good[method])) for _ in range(number)]
      outcomes[call(channel, method, messages)] += 1
  return outcomes


def unexpected(outcomes: collections.Counter) -> dict[str, int]:
  """Ends of calls that there must not be."""
  refused = {"INVALID_ARGUMENT", "ABORTED", "FAILED_PRECONDITION", "NOT_FOUND"}
  good = refused | {"OK", "group refused", DAMAGED}
  return {kind: count for kind, count in outcomes.items() if kind not in good}


def call(channel: grpc.Channel, method: str, messages: list[bytes]) -> str:
  """How a call ended, in a word; a message without a right checksum must end it, and as such."""
  try:
    ended, said = send(channel, method, messages), ""
  except grpc.RpcError as error:
    ended, said = error.code().name, error.details()
  if all(map(is_intact, messages)):
    return ended
  if ended == "INTERNAL" and said.startswith("a message was damaged on the way"):
    return DAMAGED
  # Another message of the stream may have ended it, for a reason of its own.
  if len(messages) > 1 and ended in ("ABORTED", "INVALID_ARGUMENT"):
    return ended
  return f"{DAMAGED}, yet {ended}"


def send(channel: grpc.Channel, method: str, messages: list[bytes]) -> str:
  """The call's outcome; raw bytes in both directions. Raises grpc.RpcError."""
  path, checked = PATH + method, checksum.verify
  if method == "Push":
    replies = channel.stream_stream(path)(iter(messages), timeout=10)
  elif method == "PullWeights":
    replies, checked = channel.unary_stream(path)(messages[0], timeout=10), checksum.verify_chunk
  else:
    replies = [channel.unary_unary(path)(messages[0], timeout=10)]
  found = [REPLIES[method].FromString(checked(reply)) for reply in replies]
  if method != "Push":
    return "OK"
  if len(found) != len(messages):
    return "groups without an answer"
  sent = [len(pb.PushRequest.FromString(checksum.verify(message)).groups) for message in messages]
  if [len(reply.acks) for reply in found] != sent:
    return "groups without an answer"
  verdicts = [ack.verdict for reply in found for ack in reply.acks]
  return "group refused" if pb.VERDICT_REFUSED in verdicts else "OK"
