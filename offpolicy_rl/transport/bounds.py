"""Limits of every field of a message, and the error that names the field.

They are checked before anything of the message's size is allocated, kept or logged.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from offpolicy_rl import types
from offpolicy_rl.transport import trajectory_pb2 as pb

MAX_COMPLETIONS = 4096  # of one ticket
MAX_CREDITS = 4096  # tickets that a sampler may ask for, or hold, at once
MAX_TICKET_ID = 256  # characters
MAX_MESSAGE_MB = 2000  # of transport.max_message_mb: protobuf ends at 2 GiB
MAX_STATS = 64  # entries of a heartbeat
MAX_WAIT_SECONDS = 3600.0  # in a request; the server waits 30 s at most
MAX_ROWS = 1024  # of metrics in one reply to a watcher
MAX_VALUES = 256  # of such a row; of ticket counts
MAX_SAMPLERS = 256  # in one reply to a watcher
MAX_TEXT = 256  # characters of a text for people
MAX_TIME = 1e11  # in Unix seconds
MAX_CANDIDATES = 4096  # of a token
PUSH_BYTES = 2_000_000  # of groups in one message, unless one alone is larger

# Shaping adds its own, as much as config_keys allows, to a verdict of types.MAX_VERDICT.
MAX_REWARD = 4 * types.MAX_VERDICT

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,127}")
_SAMPLER_ID = re.compile(_NAME.pattern + r"(~[A-Za-z0-9]{1,32})?")
_NAME_RULE = "1 to 128 letters, digits or any of . _ : @ / + -, a letter or digit first"
_SHOWN = 160  # characters of a value in an error or a log line


class WireError(ValueError):
  """A message is not acceptable; names the field, the value and what was expected."""


def abbreviate(value: Any) -> str:
  """`repr`, cut: safe to log or send back, whatever came over the wire."""
  # Cut before repr, too: that of 60 MB takes time and memory.
  text = repr(value[: _SHOWN + 1] if isinstance(value, str | bytes | tuple) else value)
  return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def refuse(field: str, value: Any, expected: str) -> NoReturn:
  """Raises WireError for a field."""
  raise WireError(f"{field}: got {abbreviate(value)}, expected {expected}")


def check_name(name: str, field: str) -> None:
  """Raises WireError for a name that is long, not printable, or has spaces."""
  if not _NAME.fullmatch(name):
    refuse(field, name, _NAME_RULE)


def check_sampler_id(sampler_id: str, field: str) -> None:
  """Raises WireError unless this is a name, or an id that `names.unique` makes."""
  if not _SAMPLER_ID.fullmatch(sampler_id):
    refuse(field, sampler_id, _NAME_RULE)


def check_ticket_id(ticket_id: str, field: str) -> None:
  """Raises WireError for an id that is long or not printable ASCII; spaces are allowed."""
  if not (0 < len(ticket_id) <= MAX_TICKET_ID and ticket_id.isascii() and ticket_id.isprintable()):
    refuse(field, ticket_id, f"1 to {MAX_TICKET_ID} printable ASCII characters")


def check_count(count: int, field: str, most: int) -> None:
  """Raises WireError for a number that is not from 1 to `most`."""
  if not 1 <= count <= most:
    refuse(field, count, f"1 to {most}")


def check_request(request: Any) -> None:
  """Raises WireError for the first field of a sampler's request that is out of bounds."""
  check_sampler_id(request.sampler_id, "sampler_id")
  if isinstance(request, pb.LeaseRequest):
    check_count(request.credits, "credits", MAX_CREDITS)
    _check_wait(request.wait_seconds)
    _check_ticket_ids(request.holding, "holding")
  if isinstance(request, pb.PushRequest):
    check_count(len(request.groups), "groups", MAX_CREDITS)
  if isinstance(request, pb.HeartbeatRequest):
    check_stats(request.stats)
    _check_ticket_ids(request.progress, "progress")
  if isinstance(request, pb.DeclineRequest):
    _check_ticket_ids(request.reasons, "reasons")
    for ticket_id, reason in request.reasons.items():
      check_text(reason, f"reasons[{ticket_id}]")


def _check_ticket_ids(ticket_ids: Collection[str], field: str) -> None:
  if len(ticket_ids) > MAX_CREDITS:
    refuse(field, f"{len(ticket_ids)} entries", f"at most {MAX_CREDITS}")
  for ticket_id in ticket_ids:
    check_ticket_id(ticket_id, field)


def check_watch(request: pb.WatchRequest) -> None:
  """Raises WireError for the first field of a watcher's request that is out of bounds."""
  if request.session:
    check_name(request.session, "session")
  _check_wait(request.wait_seconds)


def _check_wait(seconds: float) -> None:
  if not 0 <= seconds <= MAX_WAIT_SECONDS:  # false for nan, too
    refuse("wait_seconds", seconds, f"a number in [0, {MAX_WAIT_SECONDS:.0f}]")


def printable(text: str) -> str:
  """The text, cut and safe to show, so that `check_text` accepts it."""
  return "".join(c if c.isprintable() else "?" for c in text[:MAX_TEXT])


def check_text(text: str, field: str) -> None:
  """Raises WireError for a text that is long, or could control a terminal."""
  if len(text) > MAX_TEXT or not text.isprintable():
    refuse(field, text, f"at most {MAX_TEXT} printable characters")


def check_stats(stats: Mapping[str, float]) -> None:
  """Raises WireError unless a sampler's stats are a few finite numbers with names."""
  if len(stats) > MAX_STATS:
    refuse("stats", f"{len(stats)} entries", f"at most {MAX_STATS}")
  for name, value in stats.items():
    check_name(name, "stats")
    if not math.isfinite(value):
      refuse(f"stats[{name}]", value, "a finite number")


def ticket_bytes(prompt_tokens: int, answer: str) -> int:
  """Upper bound of an encoded ticket: 4 bytes per token, the answer, and room for the rest."""
  return 4 * prompt_tokens + len(answer.encode(errors="surrogatepass")) + 1024


def check_prompt(prompt_tokens: int, answer: str, max_message_mb: int, where: str) -> None:
  """Raises WireError if a prompt and its answer don't fit into a message; `where`: their place."""
  size, most = ticket_bytes(prompt_tokens, answer), max_message_mb << 20
  if size > most:
    raise WireError(
      f"{where}: got {prompt_tokens} tokens and an answer of {len(answer)} characters, which make "
      f"{size} bytes, expected at most {most}: transport.max_message_mb = {max_message_mb}"
    )


def max_group_bytes(completions: int, tokens: int, candidates: int = 0) -> int:
  """Upper bound of an encoded group of `completions` with up to `tokens` tokens each.

  8 bytes per token and logprob, as many for each of a token's candidates, 18 for a version run per
  token (the worst case), and room for lengths, ids and the session.
  """
  return completions * ((26 + 8 * candidates) * tokens + 256) + 4096
