"""What devices say to one another in a compiled program: collectives by kind, number and bytes."""

import collections
import re
from typing import NamedTuple

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "ragged-all-to-all",
  "collective-broadcast",
)
_BITS = {
  "pred": 8,
  "s4": 4,
  "u4": 4,
  "s8": 8,
  "u8": 8,
  "s16": 16,
  "u16": 16,
  "f16": 16,
  "bf16": 16,
  "s32": 32,
  "u32": 32,
  "f32": 32,
  "s64": 64,
  "u64": 64,
  "f64": 64,
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-]*)\(")
_CALLED = re.compile(
  r"(?:to_apply|calls|condition|body|branch_computations)=\{?([^,}]+(?:, %[^,}]+)*)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_LIMIT = re.compile(r"%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT")
# The compiler puts an asynchronous collective into the fusion that starts it, into those that work
# meanwhile and into the one that ends it: the first counts.
_GOES_ON = re.compile(r"^%async-collective-done|.* calls=%async_collective_fusion")
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


class Traffic(NamedTuple):
  """Of one kind of collective, in one execution of the program on one device."""

  number: int
  bytes: int  # of the results


def of_program(text: str) -> dict[str, Traffic]:
  """Optimized HLO -> traffic by kind; bodies of loops count as often as they run."""
  bodies, entry = _computations(text)
  found: dict[str, Traffic] = collections.defaultdict(lambda: Traffic(0, 0))
  _visit(bodies, entry, 1, found)
  return dict(found)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """({name: its lines}, name of the entry)."""
  bodies, entry, current = {}, "", []
  for line in text.splitlines():
    if head := _COMPUTATION.match(line.strip()):
      current = bodies.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    else:
      current.append(line.strip())
  return bodies, entry


def _visit(bodies, name: str, times: int, found) -> None:
  for line in bodies.get(name, ()):
    operation = _OPERATION.match(line)
    if not operation:
      continue
    kind = operation[2].removesuffix("-start")
    if kind in KINDS:
      before = found[kind]
      size = _bytes(operation[1], last_only=operation[2].endswith("-start"))
      found[kind] = Traffic(before.number + times, before.bytes + times * size)
    if _GOES_ON.match(line):
      continue
    inner = times * (_trips(bodies, line) if operation[2] == "while" else 1)
    for called in _CALLED.findall(line):
      for callee in called.split(","):
        _visit(bodies, callee.strip().lstrip("%"), inner, found)


def _trips(bodies, line: str) -> int:
  """How often a loop runs: as the compiler notes it, else by the number its condition counts to.

  At most so often where it may end before; once where only the data knows.
  """
  if noted := _TRIPS.search(line):
    return int(noted[1])
  condition, body = _LOOP.search(line).groups()
  numbers = _constants(bodies[condition])
  for compared in map(_BELOW.search, bodies[condition]):
    if compared and compared[2] in numbers:
      return -(-numbers[compared[2]] // _stride(bodies, condition, body, compared[1]))
  return 1


def _constants(lines: list[str]) -> dict[str, int]:
  """{name: value} of the integers in a computation."""
  return {found[1]: int(found[2]) for found in map(_LIMIT.search, lines) if found}


def _stride(bodies, condition: str, body: str, counter: str) -> int:
  """What a loop adds to its counter; more than 1 where the compiler has unrolled it."""
  place = re.search(r"index=(\d+)", _definition(bodies[condition], counter))
  root = next(line for line in bodies[body] if line.startswith("ROOT "))
  carried = re.search(r" tuple\((.*?)\)", root)
  if place and carried:
    after = re.findall(r"%([\w.\-]+)", carried[1])[int(place[1])]
    added = re.search(r" add\(%?\S+, %?([\w.\-]+)\)", _definition(bodies[body], after))
    return _constants(bodies[body]).get(added[1], 1) if added else 1
  return 1


def _definition(lines: list[str], name: str) -> str:
  """The line that computes `name`; "" where there is none."""
  return next((line for line in lines if line.removeprefix("ROOT ").startswith(f"%{name} = ")), "")


def _bytes(shape: str, *, last_only: bool) -> int:
  """Of an array or a tuple of arrays; an asynchronous start has operands and results in it."""
  arrays = [(kind, dims) for kind, dims in _ARRAY.findall(shape) if kind in _BITS]
  if last_only:
    arrays = [array for array in arrays if array != ("u32", "")]  # contexts
    arrays = arrays[len(arrays) // 2 :]
  return sum(_size(*array) for array in arrays)


def _size(kind: str, dims: str) -> int:
  number = 1
  for dim in filter(None, dims.split(",")):
    number *= int(dim)
  return number * _BITS[kind] // 8
