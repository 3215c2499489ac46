"""Anybody's seqio Tasks as tasks of a run: the same problems in the same order, at any step."""

import json
import os
import re

import pytest

from offpolicy_rl.cli import main
from offpolicy_rl.roles import build, data
from offpolicy_rl.tasks import catalog, prompts, scoring, vocabulary
from offpolicy_rl.tasks import stream as streams
from offpolicy_rl.tasks.rows import TaskError
from tests.tasks.sources_test import settings

MODULE = "tests.tasks.strangers"
WORDS = vocabulary.Vocabulary()


@pytest.fixture(scope="module", autouse=True)
def strangers(tmp_path_factory):
  os.environ["STRANGERS_DIR"] = str(tmp_path_factory.mktemp("strangers"))
  from tests.tasks import strangers

  strangers.prepare(strangers.FOLDER)
  return strangers


def select(config, name="strangers", **keys) -> catalog.Selection:
  return catalog.select(settings(config, name=f"seqio:{name}", **({"module": MODULE} | keys)))


def read(config, name="strangers", split="train", **keys):
  selection = select(config, name, **keys).expanded()
  return prompts.tokenize_split(selection, split, lambda _: prompts.Rendering(WORDS, 20))


def texts(made) -> list[str]:
  return [WORDS.decode(example.prompt_tokens.tolist()) for example in made.examples]


def test_a_mixture_is_read_at_its_rates_with_what_its_preprocessors_make(tiny_config):
  selection = select(tiny_config)
  selection.check()
  assert [task.name for task in selection.tasks] == ["seqio:strangers"]
  found = dict(zip(selection.expanded().tasks, read(tiny_config), strict=True))
  found = {task.name.removeprefix("seqio:strangers_"): pair for task, pair in found.items()}
  assert {name: rate for name, (rate, _) in found.items()} == {
    "sums": 0.4,
    "products": 0.4,
    "differences": 0.2,
  }
  sums, products, differences = (
    texts(found[name][1]) for name in ("sums", "products", "differences")
  )
  assert sorted(sums) == sorted(f"{a}+{b}=" for a in range(1, 10) for b in range(10))
  every = [(a, b) for a in range(10) for b in range(10)]
  assert products == [f"{a}*{b}=" for a, b in every[5:] if a * b < 10]
  # Pairs in the other order are the same question, but for equal ones.
  assert all(a >= b for a, b in (row[:-1].split("-") for row in differences))
  assert 20 < len(set(differences)) == len(differences) <= 55
  example, (a, b) = found["sums"][1].examples[0], map(int, sums[0][:-1].split("+"))
  assert WORDS.decode(example.demonstration_tokens.tolist()) == str(a + b)
  assert example.demonstration_tokens.tolist().count(WORDS.eos) == 1


@pytest.mark.long  # seconds
def test_the_order_and_random_rewriting_are_the_same_every_time(tiny_config):
  first, second = (texts(read(tiny_config, "strangers_differences")[0][1]) for _ in range(2))
  assert first == second


@pytest.mark.long  # seconds
def test_the_held_out_split_is_found_or_named_or_an_eighth(tiny_config):
  held = lambda **keys: texts(read(tiny_config, "strangers_sums", "heldout", **keys)[0][1])
  assert sorted(held()) == [f"0+{b}=" for b in range(10)]
  assert len(held(heldout_split="train[:30]")) == 30
  own = read(tiny_config, "strangers_sums")[0][1]
  assert len(own.examples) == 60  # held-out questions are not trained on
  with pytest.raises(
    TaskError, match="task.heldout_split: got 'dev', expected .*strangers_sums.*train"
  ):
    held(heldout_split="dev")


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"module": ""}, "task.module: got '', expected the module that registers"),
    ({"module": "my/own.py"}, "task.module: got 'my/own.py', expected a module, such as my.own"),
    ({"module": "no.such"}, "task.module: got 'no.such', which can't be found"),
    (
      {"module": "tests.tasks.own_task"},
      "got seqio:strangers_sum, expected one of .*strangers_sums",
    ),
    ({"verifier": "numeric", "train_split": "x"}, "task.train_split: got 'x'"),
  ],
)
def test_wrong_settings_are_refused(tiny_config, keys, message):
  name = "strangers_sums" if "train_split" in keys else "strangers_sum"
  with pytest.raises(TaskError, match=message):
    selection = select(tiny_config, name, **keys)
    selection.check()
    selection.expanded()


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    (
      {"name": "seqio:strangers_sum"},
      "strangers_sum, expected one of .*=%s: seqio:strangers_sums, ",
    ),
    ({"name": "seqio:strangers", "heldout_split": "x"}, "task.heldout_split: got 'x', expected a"),
    ({"name": "seqio:bytes"}, "task seqio:bytes: output_features: inputs: got 259 token ids"),
  ],
)
def test_what_is_wrong_with_names_is_said_before_there_is_a_run(tmp_path, capsys, keys, message):
  import seqio

  feature = seqio.Feature(seqio.ByteVocabulary())
  rows = {"inputs": [[4, 5]], "targets": [[6]]}
  registered("bytes", rows, features={"inputs": feature, "targets": feature})
  flags = [
    f"--config.task.{k}={v}" for k, v in ({"module": MODULE, "verifier": "exact"} | keys).items()
  ]
  run_dir = tmp_path / "run"
  assert main.main(["learner", "--config=configs/test.py", *flags, f"--run_dir={run_dir}"]) == 2
  assert re.search(message.replace("%s", MODULE), capsys.readouterr().err)
  assert not run_dir.exists()


@pytest.mark.parametrize("share", [0.01, 0.2])
def test_the_check_refuses_what_a_run_would(capsys, share):
  """Rows of a task that takes long to list are read once only, by whoever trains on them."""
  name = registered("holes", {"inputs": [*map(str, range(60)), ""], "targets": ["1"] * 61})
  keys = {"name": f"seqio:{name}", "module": MODULE, "verifier": "exact", "max_bad_rows": share}
  code = main.main(
    ["check", "--config=configs/test.py", *(f"--config.task.{k}={v}" for k, v in keys.items())]
  )
  printed = capsys.readouterr()
  assert ("A run can start." in printed.out, code) == ((True, 0) if share == 0.2 else (False, 2))
  assert share == 0.2 or re.search("seqio:holes, train 60: inputs: got '', .*1 of 61", printed.err)


def registered(name, rows, *, features=None, preprocessors=(), **keys):
  import seqio
  import tensorflow as tf

  if name not in seqio.TaskRegistry.names():
    make = lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows)
    source = seqio.FunctionDataSource(make, ["train"])
    seqio.TaskRegistry.add(
      name, source, output_features=features or {}, preprocessors=list(preprocessors), **keys
    )
  return name


def test_texts_are_put_as_any_other_question_and_judged_by_a_verifier(tiny_config):
  rows = {"inputs": ["1+1=", "1+2=", " "], "targets": ["so 2", "so 3", "x"], "answer": [2, 3, 4]}
  name = registered("texts", rows)
  with pytest.raises(TaskError, match="seqio:texts has no metric_fns of .targets, predictions."):
    select(tiny_config, name).expanded()
  asked = select(tiny_config, name, verifier="numeric", max_bad_rows=0.5).expanded()
  [reading], [held] = asked.read("train"), asked.read("heldout")
  found = sorted([*reading.problems, *held.problems], key=lambda problem: problem.question)
  assert [(p.question, p.answer, p.demonstration) for p in found] == [
    ("1+1=", '"2"', "so 2"),
    ("1+2=", '"3"', "so 3"),
  ]
  assert [row.why for row in reading.left_out] == [
    "inputs: got ' ', expected a text that is not blank"
  ]


def test_token_ids_of_another_vocabulary_are_refused(tiny_config):
  import seqio

  folder = os.path.join(os.path.dirname(seqio.__file__), "test_data", "sentencepiece")
  pieces = seqio.SentencePieceVocabulary(os.path.join(folder, "sentencepiece.model"))
  for name, words, message in (
    ("pieces", pieces, "inputs: got 'e' for token 4, which is '!' in the model"),
    ("bytes", seqio.ByteVocabulary(), "inputs: got 259 token ids"),
    ("through", seqio.PassThroughVocabulary(50), "inputs: got a PassThroughVocabulary"),
    ("unigrams", seqio.UnigramVocabulary(["a", "b"]), "inputs: got '.*' for token 0|a"),
  ):
    feature = seqio.Feature(words)
    rows = {"inputs": [[4, 5]], "targets": [[6]]}
    task = registered(name, rows, features={"inputs": feature, "targets": feature})
    with pytest.raises(TaskError, match=message):
      read(tiny_config, task, verifier="exact")


def test_a_cached_task_is_read_from_its_cache(tiny_config, tmp_path):
  import seqio
  import tensorflow as tf

  cache = seqio.CacheDatasetPlaceholder(required=True)
  rows = {"inputs": ["not read"], "targets": ["0"]}
  name = registered("cached", rows, preprocessors=[cache])
  with pytest.raises(TaskError, match="seqio:cached: it has to be cached and is in none of"):
    read(tiny_config, name, verifier="exact")
  folder = tmp_path / name
  folder.mkdir()
  text = {"shape": [], "dtype": "string"}
  info = {"num_shards": 1, "features": {"inputs": text, "targets": text}, "seqio_version": "0.0.20"}
  (folder / "info.train.json").write_text(json.dumps(info))
  (folder / "stats.train.json").write_text('{"examples": 40}')
  (folder / "COMPLETED").touch()
  value = lambda data: tf.train.Feature(bytes_list=tf.train.BytesList(value=[data.encode()]))
  with tf.io.TFRecordWriter(str(folder / "train.tfrecord-00000-of-00001")) as writer:
    for i in range(40):
      features = {"inputs": value(f"{i}+0="), "targets": value(str(i))}
      example = tf.train.Example(features=tf.train.Features(feature=features))
      writer.write(example.SerializeToString())
  seqio.add_global_cache_dirs([str(tmp_path)])
  both = (read(tiny_config, name, split, verifier="exact")[0][1] for split in ("train", "heldout"))
  found = [text for made in both for text in texts(made)]
  assert sorted(found) == sorted(f"{i}+0=" for i in range(40))


def test_a_mixture_of_mixtures_has_products_of_rates(tiny_config):
  import seqio

  if "nested" not in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.add("nested", [("strangers", 3), ("strangers_sums", 1)])
  selection = select(tiny_config, "nested").expanded()
  rates = dict(zip((task.name for task in selection.tasks), selection.rates, strict=True))
  assert rates == {
    "seqio:strangers_sums": pytest.approx(0.75 * 0.4 + 0.25),
    "seqio:strangers_products": pytest.approx(0.3),
    "seqio:strangers_differences": pytest.approx(0.15),
  }


@pytest.mark.long  # seconds
def test_a_mixture_is_a_member_of_ours(tiny_config):
  entry = {"rate": 1, "module": MODULE, "verifier": "exact"}
  keys = {"name": "mixture", "mixture": json.dumps({"seqio:strangers": entry, "sums": 3})}
  asked = catalog.select(settings(tiny_config, **keys))
  found = asked.expanded()
  assert [rate for rate in found.rates] == pytest.approx([0.05, 0.1, 0.1, 0.75])
  assert asked.verifier == found.verifier and asked.modules == found.modules == ()
  answers = [json.loads(part[0].answer) for part in found.split("train")]
  assert {answer["verifier"] for answer in answers} == {"offpolicy_rl.tasks.verifiers:exact"}


def test_the_metric_of_a_task_judges(tiny_config):
  [(_, made)] = read(tiny_config, "strangers_sums", "heldout")
  answer = next(e.answer for e in made.examples if "0+7=" in e.answer)
  verifier = scoring.resolve(select(tiny_config).verifier)
  assert [verifier(text, answer) for text in ("7", " 7 ", "8", "", "<think>8</think>7")] == [
    *(1.0, 1.0, 0.0, 0.0),
    1.0,
  ]
  name = registered(
    "no_judge",
    {"inputs": ["a"], "targets": ["b"]},
    metric_fns=[lambda targets, predictions: {"always": 0.0}],
  )
  [reading] = select(tiny_config, name).expanded().read("train") or [None]
  problems = reading.problems or select(tiny_config, name).expanded().read("heldout")[0].problems
  with pytest.raises(ValueError, match="no_judge: its metric gives 0.0 to the right answer 'b'"):
    verifier("b", problems[0].answer)


def test_a_run_checks_that_right_answers_can_be_judged(tiny_config, monkeypatch):
  for key, value in {"name": "seqio:strangers_sums", "module": MODULE}.items():
    tiny_config.task[key] = value
  selection, policy = (
    select(tiny_config, "strangers_sums").expanded(),
    build.make_policy(tiny_config, None),
  )
  seen = []
  monkeypatch.setattr(
    data, "_unreadable", lambda _, names, rows, modules: seen.append((names, modules)) or [[], []]
  )
  data.inspect(tiny_config, selection, policy)
  assert seen == [([selection.verifier] * 2, (MODULE,))]


def test_our_own_tasks_are_the_same_through_seqio(tiny_config):
  keys = {"module": "offpolicy_rl.tasks.seqio_tasks", "verifier": "exact"}
  asked = select(tiny_config, "sums", **keys).expanded()
  judged = select(tiny_config, "sums", **(keys | {"verifier": ""})).expanded()
  for split in ("train", "heldout"):
    assert asked.split(split) == [catalog.TASKS["sums"].split(split)]
  verifier = scoring.resolve(judged.verifier)
  problem = judged.split("train")[0][0]
  right = json.loads(problem.answer)["answer"]
  assert [verifier(text, problem.answer) for text in (right, f"{right}0")] == [1.0, 0.0]


def many(count):
  import tensorflow as tf

  rows = tf.data.Dataset.range(count)
  texts = lambda i: {"inputs": tf.strings.as_string(i) + "=", "targets": tf.strings.as_string(i)}
  return rows.filter(lambda i: i % 4 != 3).map(texts)


@pytest.mark.long
def test_a_large_source_is_streamed_and_any_prompt_found_again(tiny_config):
  import seqio

  source = seqio.FunctionDataSource(lambda split, shuffle_files: many(6_000), ["train"])
  seqio.TaskRegistry.add("many", source, output_features={})
  keys = {"verifier": "exact", "max_listed": 3000}
  [(_, made)] = read(tiny_config, "many", **keys)
  [(_, held)] = read(tiny_config, "many", "heldout", **keys)
  assert len(made.examples) + len(held.examples) == streams.BLOCK
  prompt = lambda stream, i: WORDS.decode(stream[i].prompt_tokens.tolist())
  stream = streams.make_stream([(1.0, made.prompts)], 3)
  first = [prompt(stream, i) for i in range(2 * streams.BLOCK)]
  rows = [f"{i}=" for i in range(6_000) if i % 4 != 3]
  block = set(rows[streams.BLOCK : 2 * streams.BLOCK])
  assert set(first[streams.BLOCK :]) <= block and first[streams.BLOCK :] != sorted(block)
  assert not set(first) & set(texts(held)) and len(set(first)) > 0.8 * len(first)
  # From anywhere, also beyond the first pass of 4,500 rows, and with another seed another order.
  again = streams.make_stream([(1.0, read(tiny_config, "many", **keys)[0][1].prompts)], 3)
  for i in (5_000, 3_000, 1 << 31):
    assert prompt(again, i) == prompt(stream, i)
  other = streams.make_stream([(1.0, made.prompts)], 4)
  assert [prompt(other, i) for i in range(50)] != first[:50]


def test_a_prompt_of_a_later_pass_is_found_without_reading_one(tiny_config):
  import seqio
  import tensorflow as tf

  counted, length = [], 30_000

  def source(split, shuffle_files):
    text = lambda i: counted.append(i) or str(i).encode()
    rows = tf.data.Dataset.range(length).map(lambda i: tf.numpy_function(text, [i], tf.string))
    return rows.map(lambda i: {"inputs": tf.ensure_shape(i, []), "targets": tf.ensure_shape(i, [])})

  seqio.TaskRegistry.add("counted", seqio.FunctionDataSource(source, ["train"]), output_features={})
  [(_, made)] = read(tiny_config, "counted", verifier="exact", max_listed=3000)
  begun = len(counted)
  later = streams.make_stream([(1.0, made.prompts)], 3)
  block = 10**9 // streams.BLOCK
  index = (
    next(b for b in range(block, 2 * block) if b * streams.BLOCK % length < 1000) * streams.BLOCK
  )
  later[index]
  assert len(counted) - begun < length / 2
  first = index % length
  rows = {str(i) for i in range(first, first + streams.BLOCK)}
  found = {WORDS.decode(later[index + i].prompt_tokens.tolist()) for i in range(50)}
  assert found <= rows
