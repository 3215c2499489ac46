"""Every variant of a config.json is read as transformers reads it, or refused by key."""

import re

import pytest

from benchmarks.parity import TOLERANCE, answers_of, forward_logits, gap, open_model
from offpolicy_rl.model import families
from tests.model import config_variants, random_checkpoints
from tests.model.conftest import run_reference

READ = [
  (f"{family}-{i}", family, change)
  for family, changes in config_variants.READ.items()
  for i, change in enumerate(changes)
]
REFUSED = [
  (family, change, message)
  for family, pairs in config_variants.REFUSED.items()
  for change, message in pairs
]


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
  """VARIANT/model and VARIANT/answers.npz, or error.txt, of transformers, all at once."""
  folder = tmp_path_factory.mktemp("variants")
  for name, family, change in READ:
    random_checkpoints.write(folder / name / "model", config_variants.changed(family, change))
  run_reference("logits", *(folder / name for name, _, _ in READ))
  return folder


@pytest.fixture(scope="module")
def ours():
  """Our logits by architecture: the weights under one are the same, whatever its spelling."""
  return {}


@pytest.mark.parametrize("name", [name for name, _, _ in READ])
def test_what_is_read_gives_the_logits_of_transformers(answered, ours, name):
  error = answered / name / "error.txt"
  assert not error.exists(), error.read_text()
  answers = answers_of(answered / name)
  config, params = open_model(answered / name / "model")
  if config not in ours:
    ours[config] = forward_logits(config, params, answers["tokens"])
  assert gap(ours[config], answers) < TOLERANCE


@pytest.mark.parametrize(("family", "change", "message"), REFUSED)
def test_what_is_not_computed_is_refused_by_key(family, change, message):
  with pytest.raises(families.UnsupportedModel, match=re.escape(message)):
    families.read(config_variants.changed(family, change))
