"""Updates for watchers as messages. Both ends keep to the bounds."""

import time

from offpolicy_rl import types
from offpolicy_rl.transport import bounds
from offpolicy_rl.transport import trajectory_pb2 as pb

_ENDS = ("", "finished", "stopped", "failed")


def encode_update(update: types.RunUpdate) -> pb.WatchReply:
  """RunUpdate -> message; beyond the limits, the oldest rows and last samplers are left out."""
  status = update.status
  reply = pb.WatchReply(
    session=status.session,
    run_id=bounds.printable(status.run_id),
    about=bounds.printable(status.about),
    ended=status.ended,
    num_steps=status.num_steps,
    tickets=status.tickets,
    anew=update.reset,
    position=update.position,
  )
  for sampler in status.samplers[: bounds.MAX_SAMPLERS]:
    reply.samplers.add(**sampler._asdict())
  for row in update.rows[-bounds.MAX_ROWS :]:
    named = list(row.values.items())[: bounds.MAX_VALUES]
    values = {bounds.printable(name): value for name, value in named}
    reply.rows.add(kind=row.kind, step=row.step, values=values)
  return reply


def decode_update(reply: pb.WatchReply) -> types.RunUpdate:
  """Inverse of `encode_update`, as of now; WireError for anything out of bounds."""
  bounds.check_name(reply.session, "session")
  bounds.check_text(reply.run_id, "run_id")
  bounds.check_text(reply.about, "about")
  if reply.ended not in _ENDS:
    bounds.refuse("ended", reply.ended, f"one of {_ENDS}")
  _check_most(reply.samplers, "samplers", bounds.MAX_SAMPLERS)
  _check_most(reply.rows, "rows", bounds.MAX_ROWS)
  _check_most(reply.tickets, "tickets", bounds.MAX_VALUES)
  for name in reply.tickets:
    bounds.check_name(name, "tickets")
  status = types.RunStatus(
    session=reply.session,
    run_id=reply.run_id,
    about=reply.about,
    at=time.time(),
    ended=reply.ended,
    num_steps=reply.num_steps,
    tickets=dict(reply.tickets),
    samplers=tuple(map(_decode_sampler, reply.samplers)),
  )
  rows = [_decode_row(row) for row in reply.rows]
  return types.RunUpdate(status, reply.anew, reply.position, rows)


def _check_most(entries, field: str, most: int) -> None:
  if len(entries) > most:
    bounds.refuse(field, f"{len(entries)} entries", f"at most {most}")


def _decode_sampler(message: pb.SamplerStatus) -> types.SamplerStatus:
  bounds.check_sampler_id(message.name, "samplers.name")
  bounds.check_stats(message.stats)
  if not message.silent_seconds >= 0:
    bounds.refuse("samplers.silent_seconds", message.silent_seconds, "a number >= 0")
  return types.SamplerStatus(message.name, message.silent_seconds, dict(message.stats))


def _decode_row(message: pb.MetricsRow) -> types.MetricsRow:
  bounds.check_name(message.kind, "rows.kind")
  _check_most(message.values, "rows.values", bounds.MAX_VALUES)
  for name in message.values:  # has the name of a task in it, of any characters
    bounds.check_text(name, "rows.values")
  return types.MetricsRow(message.kind, message.step, dict(message.values))
