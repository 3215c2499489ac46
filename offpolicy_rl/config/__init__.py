"""Reads, overrides and checks configurations before anything expensive starts. Imports no JAX."""

from offpolicy_rl.config.check import (
  check_architecture,
  check_data,
  check_keys,
  check_resume,
  validate,
  warnings,
)
from offpolicy_rl.config.derived import (
  batch_parts,
  environments,
  objective_choices,
  presets,
  reduction_setting,
  selection,
  tools,
  updates_per_step,
)
from offpolicy_rl.config.listing import advice
from offpolicy_rl.config.text import (
  ConfigError,
  base,
  example_card,
  example_run,
  flatten,
  from_json,
  load,
  of_run,
  override,
  read,
  to_json,
  with_defaults,
)
