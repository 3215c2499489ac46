"""Finds the collectives of a compiled program: kind, number and bytes."""

import collections
import math
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
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-]*)\(")
_CALLED = re.compile(
  r"(?:to_apply|calls|condition|body|branch_computations)=\{?([^,}]+(?:, %[^,}]+)*)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_LIMIT = re.compile(r"%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT")
# The compiler repeats an asynchronous collective in the fusions that start it, run meanwhile and
# end it; only the first is counted.
_GOES_ON = re.compile(r"^%async-collective-done|.* calls=%async_collective_fusion")
_ARRAY = re.compile(r"(pred|(?:s|u|f|bf)\d+)\[([\d,]*)\]")


class Traffic(NamedTuple):
  """Collectives of a kind in one execution of the program, per device."""

  number: int
  bytes: int  # of the results


def parse(text: str) -> dict[str, Traffic]:
  """Reads the traffic by kind from optimized HLO; loop bodies count as often as they run."""
  bodies, entry = _computations(text)
  traffic: dict[str, Traffic] = collections.defaultdict(lambda: Traffic(0, 0))
  _visit(bodies, entry, 1, traffic)
  return dict(traffic)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """({name: lines of a computation}, name of the entry)."""
  bodies, entry, current = {}, "", []
  for line in text.splitlines():
    if head := _COMPUTATION.match(line.strip()):
      current = bodies.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    else:
      current.append(line.strip())
  return bodies, entry


def _visit(bodies, name: str, times: int, traffic: dict[str, Traffic]) -> None:
  for line in bodies.get(name, ()):
    operation = _OPERATION.match(line)
    if not operation:
      continue
    kind = operation[2].removesuffix("-start")
    if kind in KINDS:
      before = traffic[kind]
      size = _bytes(operation[1], last_only=operation[2].endswith("-start"))
      traffic[kind] = Traffic(before.number + times, before.bytes + times * size)
    if _GOES_ON.match(line):
      continue
    inner = times * (_trips(bodies, line) if operation[2] == "while" else 1)
    for called in _CALLED.findall(line):
      for callee in called.split(","):
        _visit(bodies, callee.strip().lstrip("%"), inner, traffic)


def _trips(bodies, line: str) -> int:
  """Number of iterations of a loop: the compiler's note, else the limit in its condition.

  An upper bound if the loop may end earlier; 1 if it depends on the data.
  """
  if noted := _TRIPS.search(line):
    return int(noted[1])
  [(condition, body)] = _LOOP.findall(line)
  numbers = _constants(bodies[condition])
  for compared in map(_BELOW.search, bodies[condition]):
    if compared and compared[2] in numbers:
      return -(-numbers[compared[2]] // _stride(bodies, condition, body, compared[1]))
  return 1


def _constants(lines: list[str]) -> dict[str, int]:
  return {match[1]: int(match[2]) for match in map(_LIMIT.search, lines) if match}


def _stride(bodies, condition: str, body: str, counter: str) -> int:
  """The increment of a loop's counter; > 1 if the compiler has unrolled the loop."""
  place = re.search(r"index=(\d+)", _definition(bodies[condition], counter))
  root = next(line for line in bodies[body] if line.startswith("ROOT "))
  carried = re.search(r" tuple\((.*?)\)", root)
  if place and carried:
    after = re.findall(r"%([\w.\-]+)", carried[1])[int(place[1])]
    added = re.search(r" add\(%?\S+, %?([\w.\-]+)\)", _definition(bodies[body], after))
    return _constants(bodies[body]).get(added[1], 1) if added else 1
  return 1


def _definition(lines: list[str], name: str) -> str:
  return next((line for line in lines if line.removeprefix("ROOT ").startswith(f"%{name} = ")), "")


def _bytes(shape: str, *, last_only: bool) -> int:
  """Bytes of an array or a tuple of arrays; an asynchronous start has operands and results."""
  arrays = _ARRAY.findall(shape)
  if last_only:
    arrays = [array for array in arrays if array != ("u32", "")]  # contexts
    arrays = arrays[len(arrays) // 2 :]
  return sum(_size(*array) for array in arrays)


def _size(kind: str, dims: str) -> int:
  bits = 8 if kind == "pred" else int(kind.lstrip("bfsu"))
  return math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
