"""Python types <-> protobuf messages. Everything from outside is checked here.

Protobuf with raw bytes for arrays is a typed schema for any language, runs no code when decoding,
unlike pickle, and costs one copy.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from offpolicy_rl import types
from offpolicy_rl.transport import bounds, checksum, uneven
from offpolicy_rl.transport import trajectory_pb2 as pb
from offpolicy_rl.transport.bounds import WireError as WireError
from offpolicy_rl.transport.bounds import refuse as _refuse

GROUP_FORM = 3  # version of the messages on disk; raise it when `group_of_request` changes
_CODES: dict[np.dtype, pb.DType] = {
  np.dtype("<i4"): pb.DTYPE_INT32,
  np.dtype("<f4"): pb.DTYPE_FLOAT32,
  np.dtype(ml_dtypes.bfloat16): pb.DTYPE_BFLOAT16,
}
_DTYPES: dict[int, np.dtype] = {code: dtype for dtype, code in _CODES.items()}
_KINDS = {types.TRAIN: pb.KIND_TRAIN, types.EVAL: pb.KIND_EVAL}
_KIND_NAMES = {code: name for name, code in _KINDS.items()}
# Fields of a ticket that its message has in the same form.
_SAME_FIELDS = {f.name for f in dataclasses.fields(types.Ticket)} - {
  "kind",
  "prompt_tokens",
  "replies",
}


def dtype_code(dtype: np.dtype) -> pb.DType:
  """Wire code of a numpy dtype; raises WireError for one that has none."""
  dtype = np.dtype(dtype)
  if dtype not in _CODES:
    _refuse("dtype", str(dtype), f"one of {[str(d) for d in _CODES]}")
  return _CODES[dtype]


def dtype_of(code: int, field: str) -> np.dtype:
  """numpy dtype of a wire code; raises WireError for an unknown one."""
  if code not in _DTYPES:
    _refuse(f"{field}.dtype", code, f"one of {sorted(_DTYPES)}")
  return _DTYPES[code]


def encode_tensor(array: np.ndarray) -> pb.Tensor:
  """Array of any rank -> Tensor message."""
  return pb.Tensor(dtype=dtype_code(array.dtype), shape=array.shape, data=array.tobytes())


def _join(message: pb.Tensor, arrays: Sequence[np.ndarray]) -> None:
  [code] = {dtype_code(array.dtype) for array in arrays}
  [shape] = {array.shape[1:] for array in arrays}
  message.dtype = code
  message.shape.extend((sum(map(len, arrays)), *shape))
  message.data = b"".join(map(np.ascontiguousarray, arrays))


def decode_tensor(message: pb.Tensor, field: str, dtype: DTypeLike, rank: int) -> np.ndarray:
  """Tensor message -> read-only array of exactly this dtype and rank."""
  given = dtype_of(message.dtype, field)
  if given != np.dtype(dtype):
    _refuse(f"{field}.dtype", str(given), str(np.dtype(dtype)))
  shape = tuple(message.shape)
  if len(shape) != rank:
    _refuse(f"{field}.shape", shape, f"{rank} dimension(s)")
  expected_bytes = math.prod(shape) * given.itemsize
  if len(message.data) != expected_bytes:
    _refuse(f"{field}.data", f"{len(message.data)} bytes", f"{expected_bytes} bytes for {shape}")
  return np.frombuffer(message.data, given).reshape(shape)


def encode_ticket(ticket: types.Ticket) -> pb.Ticket:
  """Ticket -> message."""
  fields = {name: getattr(ticket, name) for name in _SAME_FIELDS}
  prompt_tokens = encode_tensor(ticket.prompt_tokens)
  replies = [
    pb.Replies(
      tokens=encode_tensor(r.tokens),
      rewards=r.rewards,
      ended=r.ended,
      rewinds=itertools.chain(*r.rewinds),
    )
    for r in ticket.replies
  ]
  kind = _KINDS[ticket.kind]
  return pb.Ticket(**fields, kind=kind, prompt_tokens=prompt_tokens, replies=replies)


def encode_tickets(tickets: Sequence[types.Ticket], most: int) -> Iterator[pb.Ticket]:
  """Messages of the first tickets, as many as fit into `most` bytes."""
  for ticket in tickets:
    message = encode_ticket(ticket)
    most -= message.ByteSize() + 8  # its tag and length
    if most < 0:
      return
    yield message


def decode_ticket(message: pb.Ticket) -> types.Ticket:
  """Message -> Ticket; raises WireError naming the first bad field."""
  if message.kind not in _KIND_NAMES:
    _refuse("ticket.kind", message.kind, f"one of {sorted(_KIND_NAMES)}")
  bounds.check_ticket_id(message.ticket_id, "ticket.ticket_id")
  bounds.check_count(message.num_completions, "ticket.num_completions", bounds.MAX_COMPLETIONS)
  if not (math.isfinite(message.temperature) and message.temperature >= 0):
    _refuse("ticket.temperature", message.temperature, "a finite number >= 0")
  if message.min_version > message.max_version:
    _refuse("ticket.min_version", message.min_version, f"at most {message.max_version}")
  prompt = decode_tensor(message.prompt_tokens, "ticket.prompt_tokens", np.int32, 1)
  if not prompt.size:
    _refuse("ticket.prompt_tokens.shape", prompt.shape, "at least one token")
  fields = {name: getattr(message, name) for name in _SAME_FIELDS}
  kind, replies = _KIND_NAMES[message.kind], _decode_replies(message)
  return types.Ticket(**fields, kind=kind, prompt_tokens=prompt, replies=replies)


def _decode_replies(message: pb.Ticket) -> tuple[types.Replies, ...]:
  if len(message.replies) not in (0, message.num_completions):
    _refuse("ticket.replies", len(message.replies), f"0 or {message.num_completions}")
  found = []
  for i, replies in enumerate(message.replies):
    field = f"ticket.replies[{i}]"
    tokens = decode_tensor(replies.tokens, f"{field}.tokens", np.int32, 1)
    if not tokens.size or tokens[-1] != types.BY_POLICY or tokens.min() < types.BY_POLICY:
      _refuse(f"{field}.tokens", tokens[-1:].tolist(), "token ids or -1, with -1 at the end")
    if not replies.rewards or not all(abs(r) <= types.MAX_VERDICT for r in replies.rewards):
      _refuse(f"{field}.rewards", tuple(replies.rewards), "a number for each turn")
    uneven.check_ended(replies.ended, f"{field}.ended")
    if len(replies.rewinds) % 2:
      _refuse(f"{field}.rewinds", f"{len(replies.rewinds)} numbers", "pairs")
    rewinds = tuple(types.Rewind(*pair) for pair in itertools.batched(replies.rewinds, 2))
    uneven.check_rewinds(rewinds, tokens == types.BY_POLICY, f"{field}.rewinds")
    found.append(types.Replies(tokens, tuple(replies.rewards), replies.ended, rewinds))
  return tuple(found)


def check_ticket(
  ticket: types.Ticket,
  *,
  vocab_size: int,
  max_prompt_tokens: int,
  max_completions: int,
  environments: Collection[str] = (),
) -> None:
  """Raises WireError when a sampler with these limits and environments cannot answer `ticket`."""
  prompt, played = ticket.prompt_tokens, ticket.environment
  if played and played not in environments:
    _refuse("ticket.environment", played, f"one of the run's: {', '.join(environments) or 'none'}")
  if prompt.size > max_prompt_tokens:
    _refuse("ticket.prompt_tokens", f"{prompt.size} tokens", f"at most {max_prompt_tokens}")
  if prompt.min() < 0 or prompt.max() >= vocab_size:
    bad = prompt[(prompt < 0) | (prompt >= vocab_size)][0]
    _refuse("ticket.prompt_tokens", int(bad), f"token ids in [0, {vocab_size})")
  for i, replies in enumerate(ticket.replies):
    said = replies.tokens[replies.tokens != types.BY_POLICY]
    _check_tokens(said, f"ticket.replies[{i}]", vocab_size)
  bounds.check_count(ticket.num_completions, "ticket.num_completions", max_completions)


def _encode_versions(versions: np.ndarray) -> list[pb.VersionRun]:
  if not versions.size:
    return []
  if (versions == versions[0]).all():  # the usual case, and much quicker
    return [pb.VersionRun(version=int(versions[0]), length=versions.size)]
  starts = np.flatnonzero(np.diff(versions, prepend=versions[0] - 1))
  lengths = np.diff(np.append(starts, versions.size))
  return [
    pb.VersionRun(version=int(versions[start]), length=int(length))
    for start, length in zip(starts, lengths, strict=True)
  ]


def _decode_versions(runs, length: int, field: str) -> np.ndarray:
  """Run lengths -> int32 [length]; number and sum are checked before anything is allocated."""
  if len(runs) == 1 and runs[0].length == length > 0:  # the usual case, and much quicker
    return np.full(length, runs[0].version, np.int32)
  if len(runs) > length:
    _refuse(field, f"{len(runs)} runs", f"at most one per token, {length}")
  total = sum(run.length for run in runs)
  if total != length:
    _refuse(field, f"runs of {total} tokens in all", f"{length} tokens")
  if any(run.length == 0 for run in runs):
    _refuse(field, "a run of 0 tokens", "at least 1 token in each")
  versions = np.array([run.version for run in runs], np.int32)
  return np.repeat(versions, np.array([run.length for run in runs], int))


def encode_ack(ticket_id: str, outcome: types.PushOutcome) -> pb.Ack:
  """The learner's answer to a pushed group."""
  verdict = pb.Verdict.Value(f"VERDICT_{outcome.status.name}")
  return pb.Ack(ticket_id=ticket_id, verdict=verdict, reason=outcome.reason)


def decode_ack(message: pb.Ack) -> types.PushOutcome:
  """Inverse of `encode_ack`."""
  name = pb.Verdict.Name(message.verdict).removeprefix("VERDICT_")
  return types.PushOutcome(types.PushStatus[name], message.reason)


def encode_group(group: types.Group, message: pb.Group | None = None) -> pb.Group:
  """Group -> message; fills `message` if given, which saves copying the arrays."""
  message = pb.Group() if message is None else message
  rows = group.trajectories
  message.ticket_id = group.ticket_id
  message.verifier_failures = group.verifier_failures
  message.lengths.extend(t.tokens.size for t in rows)
  _join(message.tokens, [t.tokens for t in rows])
  _join(message.logprobs, [t.logprobs for t in rows])
  message.versions.extend(_encode_versions(np.concatenate([t.versions for t in rows])))
  message.finished.extend(t.finished for t in rows)
  message.rewards.extend(t.reward for t in rows)
  message.verdicts.extend(t.verdict for t in rows)
  message.marks.extend(group.marks or ())
  uneven.encode(rows, message)
  if candidates := [t.candidates for t in rows if t.candidates is not None]:
    _join(message.candidate_tokens, [c.tokens for c in candidates])
    _join(message.candidate_logprobs, [c.logprobs for c in candidates])
  return message


def push_requests(
  groups: Sequence[types.Group], session: str, sampler_id: str
) -> Iterator[pb.PushRequest]:
  """Groups in as few messages as `bounds.PUSH_BYTES` allows, at least one in each."""
  new = functools.partial(pb.PushRequest, session=session, sampler_id=sampler_id)
  request, size = new(), 0
  for group in groups:
    size += encode_group(group, request.groups.add()).ByteSize()
    if size > bounds.PUSH_BYTES and len(request.groups) > 1:
      last = request.groups.pop()
      yield request
      request, size = new(groups=[last]), last.ByteSize()
  if request.groups:
    yield request


def decode_group(message: pb.Group, sampler_id: str = "") -> types.Group:
  """A sampler's message -> Group of consistent arrays; `check_group` compares it to the ticket."""
  bounds.check_ticket_id(message.ticket_id, "group.ticket_id")
  count = len(message.lengths)
  bounds.check_count(count, "group.lengths", bounds.MAX_COMPLETIONS)
  for name in ("finished", "rewards", "verdicts"):
    if len(getattr(message, name)) != count:
      _refuse(f"group.{name}", f"{len(getattr(message, name))} values", f"{count}, as in lengths")
  tokens = decode_tensor(message.tokens, "group.tokens", np.int32, 1)
  logprobs = decode_tensor(message.logprobs, "group.logprobs", np.float32, 1)
  if logprobs.shape != tokens.shape:
    _refuse("group.logprobs.shape", logprobs.shape, f"{tokens.shape}, that of tokens")
  if sum(message.lengths) != tokens.size:
    _refuse("group.lengths", f"{sum(message.lengths)} tokens in all", f"{tokens.size} tokens")
  versions = _decode_versions(message.versions, tokens.size, "group.versions")
  candidates = _decode_candidates(message, tokens.size)
  if message.verifier_failures > count:
    _refuse("group.verifier_failures", message.verifier_failures, f"at most {count}")
  trajectories, start = [], 0
  for length, finished, reward, verdict, episode, parts, rewinds in zip(
    message.lengths,
    message.finished,
    message.rewards,
    message.verdicts,
    uneven.episodes(message),
    uneven.parts(message),
    uneven.rewinds(message),
    strict=True,
  ):
    at = slice(start, start + length)
    arrays = tokens[at], logprobs[at], versions[at]
    recorded = candidates and types.Candidates(*(x[at] for x in candidates))
    outcome = finished, reward, verdict, recorded, *episode, parts, rewinds
    trajectories.append(types.Trajectory(*arrays, *outcome))
    start += length
  return types.Group(
    message.ticket_id,
    tuple(trajectories),
    message.verifier_failures,
    sampler_id,
    _decode_marks(message.marks),
  )


def _decode_marks(marks: Sequence[float]) -> types.Marks | None:
  if not marks:
    return None
  number = len(types.Marks._fields)
  if len(marks) != number or not all(0 <= mark <= bounds.MAX_TIME for mark in marks):
    _refuse("group.marks", tuple(marks), f"{number} numbers from 0 to {bounds.MAX_TIME:g}, or none")
  return types.Marks(*marks)


def _decode_candidates(message: pb.Group, length: int) -> types.Candidates | None:
  """Candidates [length, I] of all completions, one after the other."""
  if not (message.HasField("candidate_tokens") or message.HasField("candidate_logprobs")):
    return None
  tokens = decode_tensor(message.candidate_tokens, "group.candidate_tokens", np.int32, 2)
  logprobs = decode_tensor(message.candidate_logprobs, "group.candidate_logprobs", np.float32, 2)
  number = tokens.shape[1]
  bounds.check_count(number, "group.candidate_tokens.shape[1]", bounds.MAX_CANDIDATES)
  for name, array in (("tokens", tokens), ("logprobs", logprobs)):
    if array.shape != (length, number):
      _refuse(f"group.candidate_{name}.shape", array.shape, f"{(length, number)}")
  return types.Candidates(tokens, logprobs)


def group_of_request(data: bytes, index: int) -> types.Group:
  """A group of a serialized PushRequest with its checksum; ValueError if damaged."""
  request = pb.PushRequest.FromString(checksum.verify(data))
  return decode_group(request.groups[index], request.sampler_id)


class Expected(NamedTuple):
  """The completions of a run."""

  vocab_size: int
  max_tokens: int  # of a completion
  candidates: int = 0  # recorded with each token of training


def check_group(
  group: types.Group, ticket: types.Ticket, expected: Expected, *, newest_version: int
) -> None:
  """Raises WireError unless `group` is a valid answer to `ticket`."""
  vocab_size, max_tokens, candidates = expected
  if len(group.trajectories) != ticket.num_completions:
    _refuse("group.trajectories", len(group.trajectories), f"{ticket.num_completions} completions")
  rows, episodes = group.trajectories, bool(ticket.environment)
  _check_candidates(rows, candidates if ticket.kind == types.TRAIN else 0, vocab_size)
  _check_episodes(rows, episodes)
  tokens = _all_values([t.tokens for t in rows])
  logprobs = _all_values([t.logprobs for t in rows])
  versions = group.sampled_versions() if episodes else _all_values([t.versions for t in rows])
  low, high = ticket.min_version, min(ticket.max_version, newest_version)
  limits = {"vocab_size": vocab_size, "low": low, "high": high}
  if _all_valid(tokens, logprobs, versions, **limits) and all(
    1 <= t.tokens.size <= max_tokens
    and abs(t.reward) <= bounds.MAX_REWARD
    and abs(t.verdict) <= types.MAX_VERDICT
    for t in rows
  ):
    return
  for i, t in enumerate(rows):
    _check_trajectory(t, f"group.trajectories[{i}]", max_tokens=max_tokens, **limits)


def _check_candidates(rows: Sequence[types.Trajectory], number: int, vocab_size: int) -> None:
  for i, t in enumerate(rows):
    field = f"group.trajectories[{i}].candidates"
    found = 0 if t.candidates is None else t.candidates.tokens.shape[1]
    if found != number:
      _refuse(field, found, f"sampler.top_logprobs = {number} of each token")
    if t.candidates is not None:
      _check_tokens(t.candidates.tokens, field, vocab_size)
      _check_logprobs(t.candidates.logprobs, field)


def _check_episodes(rows: Sequence[types.Trajectory], episodes: bool) -> None:
  for i, t in enumerate(rows):
    field = f"group.trajectories[{i}]"
    if bool(t.ended) != episodes:
      expected = f"one of {', '.join(types.EPISODE_ENDS)}" if episodes else "'': not an episode"
      _refuse(f"{field}.ended", t.ended, expected)
    if episodes and not (t.sampled.any() and t.turn_rewards):
      _refuse(f"{field}.versions, turn_rewards", "no turn of the policy", "at least one")
    if episodes and t.logprobs[~t.sampled].any():
      _refuse(f"{field}.logprobs", "a number for what no policy sampled", "0 there")
    if t.rewinds:
      uneven.check_rewinds(t.rewinds, t.sampled, f"{field}.rewinds")
    bad = [reward for reward in t.turn_rewards if not abs(reward) <= types.MAX_VERDICT]
    if bad:
      _refuse(f"{field}.turn_rewards", bad[0], f"at most {types.MAX_VERDICT:g} in size")


def _all_values(arrays: list[np.ndarray]) -> np.ndarray:
  """A superset of their values, in any order; not copied if they are views of one array."""
  base = arrays[0].base
  if isinstance(base, np.ndarray) and all(array.base is base for array in arrays):
    return base
  return np.concatenate(arrays)


def _all_valid(tokens, logprobs, versions, *, vocab_size: int, low: int, high: int) -> bool:
  """Whether every value of a group is valid; checking all completions at once is much faster."""
  return bool(
    tokens.size
    and tokens.min() >= 0
    and tokens.max() < vocab_size
    and logprobs.min() >= types.MIN_LOGPROB  # false for nan, too
    and logprobs.max() <= 0
    and low <= versions.min()
    and versions.max() <= high
  )


def _check_trajectory(
  t: types.Trajectory, field: str, *, vocab_size: int, max_tokens: int, low: int, high: int
) -> None:
  if not 1 <= t.tokens.size <= max_tokens:
    _refuse(f"{field}.tokens", f"{t.tokens.size} tokens", f"1 to {max_tokens}")
  _check_tokens(t.tokens, field, vocab_size)
  _check_logprobs(t.logprobs, field)
  for name, value, most in (
    ("reward", t.reward, bounds.MAX_REWARD),
    ("verdict", t.verdict, types.MAX_VERDICT),
  ):
    if not abs(value) <= most:  # true for nan, too
      _refuse(f"{field}.{name}", value, f"a number from {-most:g} to {most:g}")
  versions = t.versions[t.sampled] if t.ended else t.versions
  bad = versions[(versions < low) | (versions > high)]
  if bad.size:
    _refuse(f"{field}.versions", int(bad[0]), f"in [{low}, {high}]")


def _check_tokens(tokens: np.ndarray, field: str, vocab_size: int) -> None:
  if tokens.size and not (tokens.min() >= 0 and tokens.max() < vocab_size):
    bad = tokens[(tokens < 0) | (tokens >= vocab_size)]
    _refuse(f"{field}.tokens", int(bad[0]), f"token ids in [0, {vocab_size})")


def _check_logprobs(logprobs: np.ndarray, field: str) -> None:
  if logprobs.size and not (logprobs.min() >= types.MIN_LOGPROB and logprobs.max() <= 0):
    bad = logprobs[~((logprobs >= types.MIN_LOGPROB) & (logprobs <= 0))]  # nan, too
    _refuse(f"{field}.logprobs", float(bad[0]), f"numbers from {types.MIN_LOGPROB:g} to 0")
