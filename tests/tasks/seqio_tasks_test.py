"""The configured tasks through seqio, and GSM8K as TFDS prepares it."""

import json
import shutil

import pytest

from offpolicy_rl.tasks import catalog, prompts, rows, verifiers
from offpolicy_rl.tasks import stream as streams
from offpolicy_rl.tasks.rows import TaskError
from tests.tasks.catalog_test import MIXTURE
from tests.tasks.sources_test import WORDS, settings


def problems(name: str, split: str) -> list[catalog.Problem]:
  """Those of a registered task, in its order."""
  import seqio

  task = seqio.get_mixture_or_task(name)
  dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False)
  return [
    catalog.Problem(*(row[column].decode() for column in ("inputs", "answer_data", "targets")))
    for row in dataset.as_numpy_iterator()
  ]


def rendering(asked: catalog.Selection, max_prompt_tokens: int):
  return lambda _task: prompts.Rendering(asked.vocabulary, max_prompt_tokens)


def registered(task) -> str:
  from offpolicy_rl.tasks import seqio_tasks  # TensorFlow: only in a worker that needs it

  return seqio_tasks.register(catalog.select(task), task.to_json(sort_keys=True))


def test_a_mixture_is_one_of_seqios_at_our_rates_and_with_our_problems(tiny_config):
  import seqio

  task = settings(tiny_config, name="mixture", mixture=MIXTURE)
  name = registered(task)
  found = seqio.get_mixture_or_task(name)
  assert isinstance(found, seqio.Mixture)
  assert [found.get_rate(t) for t in found.tasks] == [0.6, 0.2, 0.2]
  for split in ("train", "heldout"):
    expected = catalog.select(task).split(split)
    assert [problems(t.name, split) for t in found.tasks] == expected
  # Once more, and with other options: neither collides with the first.
  assert registered(task) == name
  assert registered(settings(tiny_config, size=60)) != name


def test_what_is_played_in_an_environment_has_no_metric_of_completions(tiny_config):
  """Its answer data are for the environment: a verifier could not read them."""
  import seqio

  mixture = '{"sums": {"rate": 1, "environment": "my:World"}, "chain_sum": 1}'
  name = registered(settings(tiny_config, name="mixture", mixture=mixture))
  played, judged = seqio.get_mixture_or_task(name).tasks
  assert not played.metric_fns
  problem = problems(judged.name, "heldout")[0]
  [accuracy] = judged.predict_metric_fns
  assert accuracy([problem.answer], [problem.demonstration]) == {"accuracy": 100}


@pytest.mark.parametrize("name", ["sums", "spell_backward"])
def test_a_task_is_registered_under_its_name(name):
  assert problems(name, "heldout") == catalog.TASKS[name].split("heldout")


def test_a_mixture_becomes_examples_at_its_rates(tiny_config):
  asked = catalog.select(settings(tiny_config, name="mixture", mixture=MIXTURE))
  members = prompts.tokenize_split(asked, "train", rendering(asked, 300))
  assert [rate for rate, _ in members] == [0.6, 0.2, 0.2]
  assert not any(made.too_long or made.left_out for _, made in members)
  assert [[e.answer for e in made.examples] for _, made in members] == [
    [p.answer for p in part] for part in asked.split("train")
  ]


def test_long_prompts_of_every_member_are_counted(tiny_config):
  asked = catalog.select(settings(tiny_config, name="mixture", mixture=MIXTURE))
  members = prompts.tokenize_split(asked, "train", rendering(asked, 100))
  skipped = sum(len(made.too_long) for _, made in members)
  long = [len(p.question) > 100 for part in asked.split("train") for p in part]
  assert 0 < skipped == sum(long) < len(long)
  assert sum(len(made.examples) for _, made in members) + skipped == len(long)


def test_a_file_becomes_a_stream_of_prompts(tiny_config):
  asked = catalog.select(settings(tiny_config, name="gsm8k", data_dir=str(WORDS)))
  [(rate, made)] = prompts.tokenize_split(asked, "train", rendering(asked, 300))
  stream = streams.make_stream([(rate, made.examples)], seed=0)
  seen = {asked.vocabulary.decode(stream[i].prompt_tokens.tolist()) for i in range(16)}
  assert made.too_long == made.left_out == []
  assert seen == {p.question for p in asked.split("train")[0]}


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


def test_what_tfds_prepared_is_a_task_with_columns_by_name(tiny_config, prepared):
  keys = {"name": "tfds:gsm8k:1.0.0", "data_dir": str(prepared), "max_bad_rows": 0.0}
  asked = catalog.select(settings(tiny_config, **keys, demonstration_column="question"))
  asked.check()
  found, lines = asked.expanded(), (WORDS / "train.jsonl").read_text().splitlines()
  [train], [held] = found.split("train"), found.split("heldout")
  assert (len(train), len(held)) == (16, 8)  # of the split test
  rows = {row["question"]: row["answer"] for row in map(json.loads, lines)}
  assert {p.question: json.loads(p.answer) for p in train} == rows
  assert all(p.demonstration == p.question and p.where.startswith("tfds:gsm8k") for p in train)
  assert found.verifier == asked.verifier == verifiers.NAMED["exact"]
  # A large one is streamed in the same order.
  [(_, made)] = prompts.tokenize_split(
    catalog.select(settings(tiny_config, max_listed=9)).expanded(), "train", rendering(asked, 300)
  )
  assert [problem.question for problem in made.streamed.open(3)] == [p.question for p in train[3:]]


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"name": "tfds:"}, "task.name: got 'tfds:', expected tfds:NAME"),
    (
      {"name": "tfds:gsm9k"},
      "task.data_dir: .* has no data set gsm9k; expected what .*; .* has gsm8k/",
    ),
    (
      {"name": "tfds:gsm8k:7.0.0"},
      "task.name: got tfds:gsm8k:7.0.0, expected one of tfds:gsm8k:1.0.0; that is",
    ),
    ({"name": "tfds:gsm8k", "train_split": "x"}, "task.train_split: got 'x', expected a split of"),
    ({"name": "tfds:gsm8k", "question_column": "x"}, "x: got only the columns .'annotation'"),
  ],
)
def test_what_tfds_has_not_is_refused(tiny_config, prepared, keys, message):
  with pytest.raises(TaskError, match=message):
    asked = catalog.select(settings(tiny_config, **({"data_dir": str(prepared)} | keys)))
    asked.check()
    asked.expanded().split("train")


def test_columns_of_tfds_become_what_json_would_have():
  import numpy as np

  from offpolicy_rl.tasks import tfds  # TensorFlow: only in a worker that needs it

  chat = {"role": np.array([b"user"], object), "content": np.array([b"1+1?"], object)}
  row = {"a": b"x", "b": np.float32(0.5), "c": np.array([1, 2]), "d": chat, "e": {"f": np.int64(3)}}
  row |= {"sound": b"\xff", "sounds": np.array([b"\xff", b"x"], object)}
  assert {key: tfds._plain(value) for key, value in row.items()} == {
    "a": "x",
    "b": 0.5,
    "c": [1, 2],
    "d": [{"role": "user", "content": "1+1?"}],
    "e": {"f": 3},
    "sound": b"\xff",
    "sounds": [b"\xff", "x"],
  }
  with pytest.raises(rows.RowError, match=r"sound: got b'\\xff', expected a text"):
    rows.text(rows.Values(row), "sound")


def test_gsm8k_comes_from_what_tfds_prepared(tiny_config, prepared):
  from_tfds = catalog.select(settings(tiny_config, name="gsm8k", data_dir=str(prepared)))
  from_tfds.check()
  from_files = catalog.select(settings(tiny_config, name="gsm8k", data_dir=str(WORDS)))
  for split in ("train", "heldout"):
    [a], [b] = from_tfds.split(split), from_files.split(split)
    order = lambda problems: sorted(problems, key=lambda p: p.question)
    assert order(a) == order(b)
  again = catalog.select(settings(tiny_config, data_dir=str(prepared)))
  assert again.split("train") == from_tfds.split("train")  # the order, too
