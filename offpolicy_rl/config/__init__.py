"""Configurations: read, overridden and checked before anything expensive starts. Imports no JAX."""

from offpolicy_rl.config.check import (
  architecture_relations,
  batch_parts,
  check_data,
  check_resume,
  objective_choices,
  objective_section,
  presets,
  reduction_setting,
  require,
  updates_per_step,
  validate,
  warnings,
)
from offpolicy_rl.config.text import ConfigError, base, flatten, from_json, load, override, to_json

__all__ = [
  "ConfigError",
  "architecture_relations",
  "base",
  "batch_parts",
  "check_data",
  "check_resume",
  "flatten",
  "from_json",
  "load",
  "objective_choices",
  "objective_section",
  "override",
  "presets",
  "reduction_setting",
  "require",
  "to_json",
  "updates_per_step",
  "validate",
  "warnings",
]
