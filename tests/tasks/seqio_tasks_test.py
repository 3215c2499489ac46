"""The configured tasks through seqio, and GSM8K as TFDS prepares it."""

import shutil

import pytest

from offpolicy_rl.tasks import catalog, seqio_tasks
from offpolicy_rl.tasks import stream as streams
from tests.tasks.catalog_test import MIXTURE
from tests.tasks.sources_test import WORDS, settings


def loaded(task, split="train", limit=300):
  asked = catalog.of(task)
  name = seqio_tasks.register(asked, task.to_json(sort_keys=True))
  return name, seqio_tasks.load_members(name, split, asked.vocabulary, limit)


def test_a_mixture_is_one_of_seqios_at_our_rates(tiny_config):
  import seqio

  task = settings(tiny_config, name="mixture", mixture=MIXTURE)
  name, (members, skipped) = loaded(task)
  found = seqio.get_mixture_or_task(name)
  assert isinstance(found, seqio.Mixture)
  assert [found.get_rate(t) for t in found.tasks] == [0.6, 0.2, 0.2]
  assert [rate for rate, _ in members] == [0.6, 0.2, 0.2] and skipped == 0
  problems = catalog.of(task).split("train")
  assert [[e.answer for e in examples] for _, examples in members] == [
    [p.answer for p in part] for part in problems
  ]
  # Once more, and with other options: neither collides with the first.
  assert loaded(task)[0] == name
  assert loaded(settings(tiny_config, size=60))[0] != name


def test_long_prompts_of_every_member_are_counted(tiny_config):
  task = settings(tiny_config, name="mixture", mixture=MIXTURE)
  _, (members, skipped) = loaded(task, limit=100)
  everything = catalog.of(task).split("train")
  long = [len(p.question) > 100 for part in everything for p in part]
  assert 0 < skipped == sum(long) < len(long)
  assert sum(len(e) for _, e in members) + skipped == len(long)


def test_a_file_becomes_a_stream_of_prompts(tiny_config):
  task = settings(tiny_config, name="gsm8k", data_dir=str(WORDS))
  _, (members, skipped) = loaded(task)
  words = catalog.of(task).vocabulary
  stream = streams.of(members, seed=0)
  seen = {words.decode(stream[i].prompt_tokens.tolist()) for i in range(16)}
  assert skipped == 0
  assert seen == {p.question for p in catalog.of(task).split("train")[0]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """What `tfds build gsm8k` leaves, made from our problems instead of a download."""
  import tensorflow_datasets as tfds

  folder, cache = tmp_path_factory.mktemp("tfds"), tmp_path_factory.mktemp("downloads")
  builder = tfds.builder("gsm8k", data_dir=folder)
  files = {}
  for split in ("train", "test"):
    for name in (split, f"{split}_socratic"):
      files[name] = shutil.copy(WORDS / f"{split}.jsonl", cache / f"{name}.jsonl")

  class Offline(tfds.download.DownloadManager):
    def download_and_extract(self, _):
      return files

  patch = pytest.MonkeyPatch()
  patch.setattr(tfds.download, "DownloadManager", Offline)
  builder.download_and_prepare()
  patch.undo()
  return folder


def test_gsm8k_comes_from_what_tfds_prepared(tiny_config, prepared):
  from_tfds = catalog.of(settings(tiny_config, name="gsm8k", data_dir=str(prepared)))
  from_tfds.check()
  from_files = catalog.of(settings(tiny_config, name="gsm8k", data_dir=str(WORDS)))
  for split in ("train", "heldout"):
    [a], [b] = from_tfds.split(split), from_files.split(split)
    order = lambda problems: sorted(problems, key=lambda p: p.question)
    assert order(a) == order(b)
  again = catalog.of(settings(tiny_config, data_dir=str(prepared)))
  assert again.split("train") == from_tfds.split("train")  # the order, too
