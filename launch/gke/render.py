"""Writes the manifests of one run from its values.

  python launch/gke/render.py my_values.yaml                  JobSet and Deployment, on stdout
  python launch/gke/render.py my_values.yaml --print=address  one value, for scripts

values.yaml beside this file is complete: a file of values has the same keys.
"""

import argparse
import math
import pathlib
import re
import sys

import jinja2
import yaml

_HERE = pathlib.Path(__file__).parent
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?")  # a host's name, with room for what is added


class ValuesError(ValueError):
  """A value that no cluster could use: names it and says what was expected."""


def load(path: pathlib.Path) -> dict:
  """The checked values of a file, and `address`, the host name of the learner's first process."""
  values = yaml.safe_load(path.read_text())
  _compare(values, yaml.safe_load((_HERE / "values.yaml").read_text()), "")
  if not _NAME.fullmatch(values["name"]):
    raise ValuesError(
      f"name: got {values['name']!r}, expected at most 32 of a-z, 0-9 and -, the first a letter"
    )
  chips = values["learner"]["hosts"] * values["learner"]["chips_per_host"]
  _check_topology("learner", values["learner"], chips)
  _check_topology("samplers", values["samplers"], values["samplers"]["chips_per_host"])
  return values | {"address": f"{values['name']}-learner-0-0.{values['name']}"}


def _compare(got, model, name: str) -> None:
  """The same keys and kinds of values as in the model, and nothing left empty."""
  if name == ".security":  # the cluster's own words
    return
  if type(got) is not type(model):
    raise ValuesError(
      f"{name[1:] or 'values'}: got {got!r}, expected {type(model).__name__}, as {model!r}"
    )
  if got == "":
    raise ValuesError(f"{name[1:]}: got '', expected a value; values.yaml says of what")
  if not isinstance(model, dict):
    return
  for key in [*model, *got]:
    if key not in got:
      raise ValuesError(f"{name}.{key}"[1:] + f": missing, expected such as {model[key]!r}")
    if key not in model:
      raise ValuesError(f"{name}.{key}"[1:] + f": unknown, expected one of {', '.join(model)}")
    _compare(got[key], model[key], f"{name}.{key}")


def _check_topology(role: str, part: dict, chips: int) -> None:
  found = re.fullmatch(r"\d+(x\d+){1,2}", part["topology"])
  if not found or math.prod(map(int, part["topology"].split("x"))) != chips:
    raise ValuesError(
      f"{role}.topology: got {part['topology']!r}, expected a product, such as 4x4, of the {chips} "
      "chips that its hosts have together"
    )


def render(values: dict) -> str:
  """The manifests, as YAML."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE), undefined=jinja2.StrictUndefined, autoescape=False
  )
  return environment.get_template("manifest.yaml.j2").render(values)


def main() -> int:
  """Returns 2 after a wrong value."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("values", type=pathlib.Path)
  parser.add_argument("--print", dest="one", metavar="NAME", help="print this value only")
  arguments = parser.parse_args()
  try:
    values = load(arguments.values)
    print(values[arguments.one] if arguments.one else render(values))
  except (ValuesError, OSError, yaml.YAMLError) as error:
    print(f"{arguments.values}: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
