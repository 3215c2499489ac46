"""Nonsense to test with, all of it drawn from a `random.Random`."""

import random
from collections.abc import Iterator

JSON = (
  *(None, True, False, 0, 1, -1, 10**30, 1.5, float("nan"), "", "<s>", "\ud800", "x" * 1000),
  *([], [[]], [None], ["<s>", 3], {}, {"x": "y"}, {"default": None}),
  *({"content": None}, {"content": ["x"]}, {"content": "<s>", "lstrip": "no"}),
  *({"0": {"content": "<unk>"}}, {"-1": {"content": "q"}}),
  *([{}], [{"name": 3}], [{"name": "default", "template": 5}], [{"name": "x", "template": "y"}]),
)


def randoms(count: int) -> Iterator[random.Random]:
  """So many, one after the other; where a test fails, its output ends with the seed."""
  for seed in range(count):
    print("seed", seed)
    yield random.Random(seed)


def damage(rng: random.Random, data: bytes, other: bytes) -> bytes:
  """`data` with flipped bits, cut, spliced with `other`, repeated, or replaced by noise."""
  at = rng.randrange(len(data) + 1)
  match rng.randrange(5):
    case 0:
      flipped = bytearray(data)
      for _ in range(rng.choice([1, 2, 8]) if data else 0):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
      return bytes(flipped)
    case 1:
      return data[:at]
    case 2:
      return data[:at] + other[rng.randrange(len(other) + 1) :]
    case 3:
      return data + data[:at]
    case _:
      return rng.randbytes(rng.choice([0, 1, 5, 100, 3000]))


def change_json(rng: random.Random, value):
  """The same JSON value with something else in one place."""
  if not isinstance(value, dict | list) or not value or rng.random() < 0.3:
    return rng.choice(JSON)
  key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
  changed = value.copy()
  changed[key] = change_json(rng, value[key])
  return changed
