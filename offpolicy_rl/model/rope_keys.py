"""Rotations of heads from a config.json in the spelling of transformers 4 or 5.

transformers 4 wrote rope_theta and rope_scaling, transformers 5 writes rope_parameters. Where a
file has several of them, precedence is as in transformers 5.
"""

from typing import NamedTuple

from offpolicy_rl.model import rope
from offpolicy_rl.model.config_reader import OBJECT, POSITIVE, SIZE, Reader

# Keys beside the parameters that hold a theta, and their defaults.
_THETA, _GEMMA3_THETA = ("rope_theta", 10_000.0), ("rope_theta", 1_000_000.0)
_LOCAL_THETA = ("rope_local_base_freq", 10_000.0)
FULL, LOCAL = "full_attention", "sliding_attention"  # kinds of layers


class Rotation(NamedTuple):
  """The rotation of the heads of some layers."""

  theta: float
  scaling: rope.Scaling | None


def _objects(r: Reader) -> tuple[dict | None, dict | None]:
  return r.get("rope_parameters", OBJECT, null=True), r.get("rope_scaling", OBJECT, null=True)


def shared_rotation(r: Reader) -> Rotation:
  """The rotation of a model in which all layers have the same."""
  new, old = _objects(r)
  if not old:
    return _rotation(r, "rope_parameters", new or {}, _THETA)
  theta = r.keys.get(*_THETA)
  if new and "rope_theta" not in old and new.get("rope_theta", theta) != theta:
    # transformers reads the older key alone, and would silently drop this theta.
    r.refuse("rope_parameters", new, "None, or the same rope_theta, beside rope_scaling")
  return _rotation(r, "rope_scaling", old, _THETA)


def gemma3_rotations(r: Reader) -> list[Rotation]:
  """The rotations of layers that see everything, and of local ones."""
  new, old = _objects(r)
  plain = {"rope_type": "default"}
  new = {FULL: plain, LOCAL: plain} if new is None else new
  rotations = []
  for kind, theta in ((FULL, _GEMMA3_THETA), (LOCAL, _LOCAL_THETA)):
    name, params = f"rope_parameters.{kind}", new.get(kind)
    params = {} if params is None else r.checked(name, params, OBJECT)
    if kind == FULL and old is not None:
      name = f"{name} with rope_scaling" if params != plain else "rope_scaling"
      params = params | old  # a "type" in the older one says nothing beside a "rope_type"
    rotations.append(_rotation(r, name, params, theta))
  if old is not None and new.get(FULL) is None:
    r.refuse("rope_scaling", old, f"None where rope_parameters.{FULL} is not there")
  # Parameters beside those of the two kinds of layers are not read: they must say the same.
  same = plain | {"type": "default", "rope_theta": rotations[0].theta}
  flat = {key: value for key, value in new.items() if key not in (FULL, LOCAL)}
  if any(key not in same or value != same[key] for key, value in flat.items()):
    r.refuse("rope_parameters", flat, f"{FULL} and {LOCAL}")
  return rotations


def _rotation(r: Reader, name: str, params: dict, theta: tuple[str, float]) -> Rotation:
  """Reads one object of parameters; `theta`: the key beside it and its default."""
  r.seen.add(theta[0])
  if "rope_theta" in params:
    base = r.checked(f"{name}.rope_theta", params["rope_theta"], POSITIVE)
  else:
    base = r.checked(theta[0], r.keys.get(*theta), POSITIVE)
  kind = params.get("rope_type", params.get("type", "default"))
  known, scaling = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}, None
  if params.get("partial_rotary_factor", 1.0) != 1.0:
    r.refuse(f"{name}.partial_rotary_factor", params["partial_rotary_factor"], "1.0")
  if kind == "linear":
    known.add("factor")
    [factor] = _numbers(r, name, params, ["factor"])
    scaling = rope.Scaling("linear", factor)
  elif kind == "llama3":
    names = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
    known |= set(names)
    params = {names[-1]: r.get("max_position_embeddings", SIZE)} | params
    factor, low, high, length = _numbers(r, name, params, names)
    scaling = rope.Scaling("llama3", factor, low, high, int(length))
    if high <= low:
      r.refuse(f"{name}.high_freq_factor", high, f"a number above low_freq_factor = {low}")
  elif kind != "default":
    r.refuse(f"{name}.rope_type", kind, "default, linear, llama3")
    return Rotation(float(base), None)
  if params.keys() - known:
    r.problems.append(f"{name}: unknown keys {sorted(params.keys() - known)}")
  return Rotation(float(base), scaling)


def _numbers(r: Reader, name: str, params: dict, keys: list[str]) -> list[float]:
  missing = [key for key in keys if key not in params]
  if missing:
    r.problems.append(f"{name}: {missing} missing")
  values = [(key, params.get(key, 2 + i)) for i, key in enumerate(keys)]  # else to go on with
  return [float(r.checked(f"{name}.{key}", value, POSITIVE)) for key, value in values]
