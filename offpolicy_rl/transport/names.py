"""Names of samplers. Two may have the same name: containers share host and process id."""

import collections
import secrets
from collections.abc import Iterable

from offpolicy_rl.transport import bounds

MARK = "~"  # between the name and what makes it unique


def unique(name: str) -> str:
  """An id for one sampler process: its name and random characters; WireError for a bad name."""
  bounds.check_name(name, "--name")
  return f"{name}{MARK}{secrets.token_hex(4)}"


def name_of(sampler_id: str) -> str:
  """The name that a sampler was given."""
  return sampler_id.partition(MARK)[0]


def display_names(sampler_ids: Iterable[str]) -> dict[str, str]:
  """Id -> name for people: the id if several share a name."""
  ids = list(sampler_ids)
  count = collections.Counter(map(name_of, ids))
  return {i: name_of(i) if count[name_of(i)] == 1 else i for i in ids}
