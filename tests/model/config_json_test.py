"""Every config.json, published or varied, is read as transformers reads it, or refused by key."""

import json
import pathlib
import re

import pytest

from benchmarks.parity import TOLERANCE, answers_of, forward_logits, gap, open_model
from offpolicy_rl.model import families
from offpolicy_rl.planning import architectures
from offpolicy_rl.roles import convert
from offpolicy_rl.tasks import tokenizer
from tests.conftest import ROOT
from tests.model import config_variants, random_checkpoints
from tests.model.conftest import run_reference
from tests.tasks.tokenizer_test import Gguf

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


PUBLISHED = {
  path.parent.name: json.loads(path.read_text())
  for path in sorted((ROOT / "tests" / "data" / "published").glob("*/config.json"))
}
TEXT = [name for name, keys in PUBLISHED.items() if "text_config" not in keys]


# What published models say is compared in every run, and each family once as it is by default.
NAMES = [
  *TEXT,
  *(pytest.param(name, marks=[pytest.mark.long] * bool(change)) for name, _, change in READ),
]


@pytest.fixture(scope="module")
def answered(request, tmp_path_factory):
  """NAME/model and NAME/answers.npz of transformers, or error.txt, all at once."""
  folder = tmp_path_factory.mktemp("variants")
  chosen = {item.callspec.params.get("name") for item in request.session.items if _has_name(item)}
  for name, family, change in READ:
    if name in chosen:
      random_checkpoints.write(folder / name / "model", config_variants.changed(family, change))
  for name in chosen.intersection(TEXT):
    source = folder / name / "source"
    random_checkpoints.write(source, random_checkpoints.shrunk(PUBLISHED[name]))
    tokenizer.write_from_gguf(Gguf(), source)
    convert.import_checkpoint(str(source), str(folder / name / "model"))
  run_reference("logits", *folder.iterdir())
  return folder


def _has_name(item) -> bool:
  return item.path == pathlib.Path(__file__) and hasattr(item, "callspec")


@pytest.fixture(scope="module")
def ours():
  """Our logits by architecture: the weights under one are the same, whatever its spelling."""
  return {}


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", TEXT)
def test_a_published_model_is_read_in_its_own_size(name):
  keys, config = PUBLISHED[name], families.read(PUBLISHED[name])
  assert (config.width, config.num_layers) == (keys["hidden_size"], keys["num_hidden_layers"])
  assert (config.vocab_size, config.mlp_width) == (keys["vocab_size"], keys["intermediate_size"])
  assert (config.num_heads, config.num_kv_heads) == (
    keys["num_attention_heads"],
    keys["num_key_value_heads"],
  )


def test_a_model_of_images_and_text_is_refused_by_what_it_is():
  with pytest.raises(families.UnsupportedModel, match="model_type: got 'gemma3', supported: llama"):
    families.read(PUBLISHED["gemma-3-4b-it"])


def test_every_family_and_every_card_has_a_published_model():
  assert {PUBLISHED[name]["model_type"] for name in TEXT} == families.FAMILIES.keys()
  cards = [path.read_text() for path in sorted((ROOT / "configs").glob("*.py"))]
  named = {name for text in cards for name in re.findall(r"--to=checkpoints/([\w.-]+)", text)}
  assert len(named) > 7 and named <= PUBLISHED.keys()


def test_planning_knows_the_published_values():
  for name, known in architectures.KNOWN.items():
    assert known.items() <= {k: v for k, v in PUBLISHED[name].items() if k in known}.items()
