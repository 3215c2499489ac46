"""Why the learner ended a call, in a form that a program can rely on.

Most codes and all words of a failed call may come from gRPC itself, from something between the two
ends, or from a damaged byte. Only a learner puts a reason beside the status, in the trailing
metadata; a call that failed without one may succeed the next time.
"""

import enum
from typing import NoReturn

import grpc

_KEY = "offpolicy-rl-reason"
_MOST_TEXT = 512  # characters: gRPC loses the status of a call whose metadata has over 8 KB


class Reason(enum.StrEnum):
  """What the caller can do about it."""

  REFUSED = "refused"  # nothing: the same call will be refused again
  NEW_SESSION = "new-session"  # say Hello: the learner was restarted
  NO_VERSION = "no-version"  # do without: there are no such weights any more


def abort(
  context: grpc.ServicerContext, code: grpc.StatusCode, text: str, reason: Reason = Reason.REFUSED
) -> NoReturn:
  """Ends a call for a reason; use `context.abort` where trying again may help."""
  context.set_trailing_metadata(((_KEY, reason.value),))
  context.abort(code, text[:_MOST_TEXT])


def reason_of(error: grpc.RpcError) -> Reason | None:
  """Why a learner ended this call; None when no learner says so."""
  told = [value for key, value in error.trailing_metadata() or () if key == _KEY]
  return next((reason for reason in Reason if told == [reason.value]), None)
