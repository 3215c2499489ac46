"""The objectives of the literature by name. A preset is a choice of each thing, with its source.

A preset of your own needs one entry beside these, or none: --config.objective.fn names a function
from outside.
"""

import dataclasses

from offpolicy_rl.losses.choices import Choices
from offpolicy_rl.losses.presets_ratio import POLICY_GRADIENT, PPO
from offpolicy_rl.losses.presets_ratio_free import CONTRASTIVE, REGRESSION

PRESETS = {c.name: c for c in (*REGRESSION, *CONTRASTIVE, *POLICY_GRADIENT, *PPO)}


def choose(name: str | Choices, **overrides) -> Choices:
  """A preset (or choices of your own) with some fields replaced; None keeps the preset's.

  Raises:
    ValueError: unknown preset or choice, or a value that makes no sense.
  """
  if isinstance(name, str) and name not in PRESETS:
    raise ValueError(f"objective.name: got {name!r}, expected one of {', '.join(sorted(PRESETS))}")
  chosen = PRESETS[name] if isinstance(name, str) else name
  given = {key: value for key, value in overrides.items() if value is not None}
  unknown = set(given) - {field.name for field in dataclasses.fields(Choices)}
  if unknown:
    raise ValueError(f"objective: unknown choice {sorted(unknown)[0]!r}")
  chosen = dataclasses.replace(chosen, **given)
  functions = dict.fromkeys(preset.fn for preset in PRESETS.values())
  if chosen.fn not in functions and ":" not in chosen.fn:
    raise ValueError(
      f"objective.fn: got {chosen.fn!r}, expected one of {', '.join(functions)}, or your own "
      "function as module:function"
    )
  chosen.check()
  return chosen
