"""What samplers are called. Two may be given one name: containers share host and process id."""

import collections
import secrets
from collections.abc import Iterable

from offpolicy_rl.transport import bounds

MARK = "~"  # between the name and what makes it unique


def unique(name: str) -> str:
  """The id of one sampler process: its name and something random.

  Raises:
    bounds.WireError: `name` is no name.
  """
  bounds.check_name(name, "--name")
  return f"{name}{MARK}{secrets.token_hex(4)}"


def name_of(sampler_id: str) -> str:
  """The name that a sampler was given."""
  return sampler_id.partition(MARK)[0]


def shown(sampler_ids: Iterable[str]) -> dict[str, str]:
  """Id -> what people are shown: the name, or the whole id where several have that name."""
  ids = list(sampler_ids)
  count = collections.Counter(map(name_of, ids))
  return {i: name_of(i) if count[name_of(i)] == 1 else i for i in ids}
