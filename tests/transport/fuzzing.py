"""Damaged and nonsensical messages, and a learner to send them to.

For the tests and benchmarks/fuzz.py.

Everything is drawn from a `random.Random`: hypothesis gives one that it can shrink, the benchmark
one with a seed.
"""

import collections
import math
import random

import grpc
import numpy as np
from google.protobuf import message as message_lib
from google.protobuf.descriptor import FieldDescriptor

from offpolicy_rl import types
from offpolicy_rl.replay.ledger import Ledger, Verdict
from offpolicy_rl.transport import client, codec, server, weights
from offpolicy_rl.transport import trajectory_pb2 as pb

SESSION, VOCAB, MAX_TOKENS = "one", 50, 8
PATH = f"/{server.SERVICE}/"
SAMPLERS = 2
PLACES = 3 * SAMPLERS + 2  # threads that the server may start as it needs them
TEXTS = ["", "me", SESSION, "train/0", "../../etc/passwd", "x" * 5000, "\0\n\x1b[31m", "é" * 200]
NUMBERS = [0, 1, 2, 3, 7, 255, 4097, 2**31 - 1, 2**32 - 1]
FLOATS = [0.0, -0.5, 1.0, -1e-9, math.nan, math.inf, -math.inf, 3e38]
# Four bytes in a tensor, read as float32 or int32.
WORDS = [
  *np.array([math.nan, math.inf, -math.inf, 0.25, -0.25, -0.0], np.float32).view(np.int32).tolist(),
  *(-(2**31), -1, 0, 49, 50, 2**31 - 1),
]
VALUES = {
  FieldDescriptor.CPPTYPE_INT32: [-(2**31), -2, -1, *NUMBERS[:-1]],
  FieldDescriptor.CPPTYPE_UINT32: NUMBERS,
  FieldDescriptor.CPPTYPE_UINT64: [*NUMBERS, 2**64 - 1],
  FieldDescriptor.CPPTYPE_FLOAT: FLOATS,
  FieldDescriptor.CPPTYPE_BOOL: [False, True],
  FieldDescriptor.CPPTYPE_ENUM: [0, 1, 2, 3, 9],
}


def ticket(name: str) -> types.Ticket:
  """Two completions, versions 0 to 2."""
  prompt = np.array([3, 4], np.int32)
  return types.Ticket(name, types.TRAIN, 0, 0, prompt, '{"a": 1}', 0, 2, 2, 1.0)


def answer(name: str) -> types.Group:
  """A good one to `ticket(name)`."""
  tokens = np.array([5, 6, 1], np.int32)
  logprobs = np.array([-0.5, -1e-9, -30.0], np.float32)
  one = types.Trajectory(tokens, logprobs, np.array([0, 0, 1], np.int32), True, 1.0)
  return types.Group(name, (one, one))


def good_requests(names: list[str]) -> dict[str, list[message_lib.Message]]:
  """What a sampler would send, by method."""
  who = {"session": SESSION, "sampler_id": "me"}
  return {
    "Hello": [pb.HelloRequest(protocol=server.PROTOCOL, sampler_id="me")],
    "Lease": [pb.LeaseRequest(**who, credits=2, wait_seconds=0.01)],
    "Heartbeat": [pb.HeartbeatRequest(**who, stats={"tokens_per_second": 3.0})],
    "PullWeights": [pb.WeightsRequest(**who, min_version=0, max_version=0, held_version=-2)],
    "Push": [codec.encode_group(answer(name), SESSION, "me") for name in names],
  }


def random_message(rng: random.Random, kind: type, depth: int = 0) -> message_lib.Message:
  """A well-formed message whose fields make no sense together."""
  made = kind()
  for field in made.DESCRIPTOR.fields:
    if rng.random() < 0.3:
      continue
    if field.message_type and field.message_type.GetOptions().map_entry:
      getattr(made, field.name)[rng.choice(TEXTS)] = rng.choice(FLOATS)
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
  """Replaces one value somewhere inside by an odd one of its type; all the rest stays good."""
  if isinstance(message, pb.Tensor):
    values = np.frombuffer(message.data, np.int32).copy()
    values[rng.randrange(values.size)] = rng.choice(WORDS)
    message.data = values.tobytes()
    return
  field, found = rng.choice(message.ListFields())
  if field.message_type and field.message_type.GetOptions().map_entry:
    found[rng.choice(TEXTS)] = rng.choice(FLOATS)
  elif field.message_type:
    spoil(rng, rng.choice(found) if field.is_repeated else found)
  elif field.is_repeated:
    found[rng.randrange(len(found))] = _value(rng, field, 0)
  else:
    setattr(message, field.name, _value(rng, field, 0))


def damage(rng: random.Random, data: bytes, other: bytes) -> bytes:
  """`data` with flipped bits, cut, spliced with `other`, repeated, or replaced by noise."""
  at = rng.randrange(len(data) + 1)
  match rng.randrange(5):
    case 0:
      spoilt = bytearray(data)
      for _ in range(rng.choice([1, 2, 8]) if data else 0):
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
      return bytes(spoilt)
    case 1:
      return data[:at]
    case 2:
      return data[:at] + other[rng.randrange(len(other) + 1) :]
    case 3:
      return data + data[:at]
    case _:
      return rng.randbytes(rng.choice([0, 1, 5, 100, 3000]))


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
    if not (1 <= len(rows) <= MAX_TOKENS and math.isfinite(t.reward)):
      return False
    for token, logprob, version in rows:
      if not (0 <= token < VOCAB and -math.inf < logprob <= 0 and 0 <= version <= 2):
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
    self.book = Ledger(lease_seconds=5)
    self.book.add(map(ticket, self.names))
    store = weights.WeightStore()
    store.put(0, {"w": np.arange(3, dtype=np.float32)})
    self.bad_groups, self.accepted, self.other_leased = 0, 0, 0
    handlers = server.Handlers(
      lease=lambda sampler, limit, wait: self.book.lease(sampler, limit, min(wait, 0.01)),
      heartbeat=lambda sampler, stats: self.book.heartbeat(sampler),
      finish=self._finish,
      run_finished=lambda: False,
    )
    identity = server.Identity(SESSION, "run", "{}", "print")
    self.wire, self.address = server.start(
      "127.0.0.1:0", identity, handlers, store, max_samplers=SAMPLERS, max_message_mb=1
    )

  def _finish(self, group: types.Group) -> str:
    asked = self.book.ticket(group.ticket_id)
    if asked is not None:
      codec.check_group(group, asked, vocab_size=VOCAB, max_tokens=MAX_TOKENS)
    verdict = self.book.finish(group, 0)
    if verdict is Verdict.ACCEPTED:
      self.accepted += 1
      self.bad_groups += not is_good(group)
    return verdict.value

  def renew(self) -> None:
    """Replaces the answered tickets, so that there is always something to answer."""
    for name in list(self.names):
      if self.book.take([name], timeout=0):
        self.names.remove(name)
        self.names.append(f"train/{self.made}")
        self.made += 1
        self.book.add([ticket(self.names[-1])])

  def works(self, name: str) -> bool:
    """Whether a good sampler can join, lease, pull and have a group accepted; `name` is new."""
    self.book.add([ticket(name)], first=True)
    sampler = client.LearnerClient(self.address, "good", reconnect_seconds=5)
    sampler.hello()
    leased = [t.ticket_id for t in sampler.lease(1)]
    # A ticket that a fuzzed call leased may expire just now; the ledger puts it before all others.
    self.other_leased += leased != [name]
    version, tensors = sampler.pull_weights(0, 0, types.NO_VERSION, 10**6)
    acks = sampler.push([answer(ticket_id) for ticket_id in leased])
    sampler.close()
    verdicts = [ack.verdict for ack in acks]
    taken = self.book.take([name], timeout=0) if leased == [name] else leased
    return verdicts == [pb.VERDICT_ACCEPTED] and bool(taken) and (version, len(tensors)) == (0, 1)

  def close(self) -> bool:
    """Ends the server; False when it hangs."""
    self.book.close()
    return self.wire.stop(0).wait(10)


def bombard(target: Target, rng: random.Random, count: int) -> collections.Counter:
  """Sends `count` calls of raw bytes -> how many ended how. A hang counts as DEADLINE_EXCEEDED."""
  good = good_requests(target.names)
  outcomes = collections.Counter()
  with grpc.insecure_channel(target.address) as channel:
    for _ in range(count):
      method = rng.choice(list(good))
      messages = [request(rng, good[method]) for _ in range(rng.choice([1, 1, 3]))]
      try:
        outcomes[send(channel, method, messages)] += 1
      except grpc.RpcError as error:
        outcomes[error.code().name] += 1
  return outcomes


def send(channel: grpc.Channel, method: str, messages: list[bytes]) -> str:
  """The call's outcome; raw bytes in both directions. Raises grpc.RpcError."""
  if method == "Push":
    replies = channel.stream_stream(PATH + method)(iter(messages), timeout=10)
    verdicts = [pb.Ack.FromString(reply).verdict for reply in replies]
    return "group refused" if pb.VERDICT_REFUSED in verdicts else "OK"
  if method == "PullWeights":
    list(channel.unary_stream(PATH + method)(messages[0], timeout=10))
  else:
    channel.unary_unary(PATH + method)(messages[0], timeout=10)
  return "OK"
