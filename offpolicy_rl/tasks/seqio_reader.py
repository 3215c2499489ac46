"""Reads the Tasks and Mixtures in seqio's registries. The import loads seqio and TensorFlow.

Order and position are ours: a Task is read without shuffling, with a fixed seed for its
preprocessors, so that the rows of a pass are always the same; `stream.py` shuffles them.
"""

import difflib
import functools
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from offpolicy_rl.tasks import quiet, rows, seqio_vocabulary, sources, splits, verifiers
from offpolicy_rl.tasks.rows import LeftOut, TaskError
from offpolicy_rl.tasks.sources import Problem

with quiet.stderr_only_on_failure():  # TensorFlow reports missing CUDA drivers, twice
  import seqio
  import tensorflow as tf

ANSWER_DATA = "answer_data"  # a feature: JSON for the verifier
_SEED = 0  # of preprocessors
_BATCH = 256  # examples that are taken from TensorFlow at once
_LEAST_RATE = 1e-6

Example = dict[str, Any]  # feature -> bytes, number or array of NumPy


class Reading(NamedTuple):
  """The way in which Tasks are read: keys of the section `task`."""

  module: str
  train_split: str
  heldout_split: str
  max_listed: int
  max_bad_rows: float
  verifier: str


def members(name: str, how: Reading) -> list[tuple[float, splits.Task]]:
  """(rate, task) of the Tasks of a Mixture, at rates that add up to 1, or of the one Task.

  Raises:
    TaskError: there is no such name, or a Task can't be trained on.
  """
  found = _find(name, how.module)
  if isinstance(found, seqio.Task):
    return [(1.0, _task(found, how))]
  rates = [(_rate(found, task), task) for task in found.tasks]
  used = [(rate, task) for rate, task in rates if rate != 0]
  total = sum(rate for rate, _ in used)
  for rate, task in used:
    if not rate >= _LEAST_RATE * total > 0 or not math.isfinite(total):
      raise TaskError(
        f"seqio:{name}: got rate {rate:g} for {task.name}, expected 0, or at least "
        f"{_LEAST_RATE:g} of the sum {total:g}"
      )
  if not used:
    raise TaskError(f"seqio:{name}: got rates of 0 only, expected one above")
  return [(rate / total, _task(task, how)) for rate, task in used]


def _rate(mixture: seqio.Mixture, task: seqio.Task) -> float:
  try:
    return float(mixture.get_rate(task))
  except Exception as error:  # a rate may be a function of the user, or of sizes that nobody said
    raise TaskError(
      f"seqio:{mixture.name}: got no rate of {task.name}, expected a number, or a function of the "
      f"Task that returns one (sizes: num_input_examples of its source): {_told(error)}"
    ) from error


def _find(name: str, module: str) -> seqio.Task | seqio.Mixture:
  try:
    importlib.import_module(module)
  except Exception as error:
    raise TaskError(f"task.module: importing {module!r}: {_told(error)}") from error
  known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
  if name not in known:
    similar = difflib.get_close_matches(name, known)
    names = ", ".join(f"seqio:{one}" for one in dict.fromkeys([*similar, *sorted(known)]))
    raise TaskError(
      f"task.name: got seqio:{name}, expected one of those that are registered after importing "
      f"task.module={module}: {names:.500}"
    )
  return seqio.get_mixture_or_task(name)


def _told(error: Exception) -> str:
  return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"


def _task(task: seqio.Task, how: Reading) -> splits.Task:
  if how.verifier == verifiers.SEQIO_METRIC and not task.predict_metric_fns:
    raise TaskError(
      f"task.verifier: got '', but seqio:{task.name} has no metric_fns of (targets, predictions); "
      f"expected {', '.join(verifiers.NAMED)} or module:function"
    )
  heldout = splits.heldout_split(f"seqio:{task.name}", list(task.splits), how)
  listed = lambda split: functools.cache(functools.partial(_listed, task, how, split))
  return splits.Task(
    f"seqio:{task.name}",
    listed(how.train_split),
    how.verifier,
    heldout=listed(heldout) if heldout else None,
    slow=True,
    max_bad_rows=how.max_bad_rows,
    why_other_ids=functools.partial(seqio_vocabulary.why_other_ids, task.output_features),
    module=how.module,
  )


def _listed(task: seqio.Task, how: Reading, split: str) -> sources.Listed:
  opener = functools.partial(_problems, task, how.verifier, split)
  try:
    size = task.num_input_examples(split)
  except Exception:  # some sources only know it when they are prepared
    size = None
  return sources.listed(opener, how.max_listed, size)


def _problems(
  task: seqio.Task, verifier: str, split: str, start: int
) -> Iterator[Problem | LeftOut]:
  """The problems of a pass, from number `start` on; see `stream.Streamed.open`.

  Raises:
    TaskError: for what the source or a preprocessor raises.
  """
  where, number = f"seqio:{task.name}, {split}", start
  try:
    examples = dataset(task, split)
    length = int(examples.cardinality())  # below 0 if nobody knows without reading
    number = start % length if length > 0 else start
    for example in _rows(examples.skip(number)):
      yield _problem(task, verifier, example, f"{where} {number}")
      number += 1
  except TaskError:
    raise
  except Exception as error:
    raise TaskError(f"{where}, behind example {number - 1}: {_told(error)}") from error


def _rows(examples: tf.data.Dataset) -> Iterator[Example]:
  """The examples as NumPy has them, in batches, which is several times faster."""
  specs = examples.element_spec.values()
  if not all(isinstance(s, tf.TensorSpec) and s.shape.rank in (0, 1) for s in specs):
    yield from examples.as_numpy_iterator()
    return
  for batch in examples.ragged_batch(_BATCH).as_numpy_iterator():
    columns = {name: _column(values) for name, values in batch.items()}
    for row in zip(*columns.values(), strict=True):
      yield dict(zip(columns, row, strict=True))


def _column(values: Any) -> Sequence:
  if isinstance(values, np.ndarray):
    return values
  return np.split(values.values, values.row_splits[1:-1])  # ragged


def dataset(task: seqio.Task, split: str) -> tf.data.Dataset:
  """The examples of a split, the same in the same order every time; cached ones if there are."""
  tf.random.set_seed(_SEED)
  if task.supports_caching and task.cache_dir:
    found = task.get_dataset(
      split=split, use_cached=True, shuffle=False, seed=_SEED, try_in_mem_cache=False
    )
  elif task.requires_caching:
    raise TaskError(
      f"seqio:{task.name}: it has to be cached and is in none of "
      f"{list(seqio.get_global_cache_dirs())}; add its folder with seqio.add_global_cache_dirs"
    )
  else:  # Task.get_dataset with a seed wants one in dataset_fn, and keeps small sources in memory
    found = task.source.get_dataset(split=split, shuffle=False)
    found = task.preprocess_precache(found, seed=_SEED)
    found = task.preprocess_postcache(found, sequence_length=None, seed=_SEED)
  options = tf.data.Options()
  options.deterministic = True
  return found.with_options(options)


def _problem(task: seqio.Task, verifier: str, example: Example, where: str) -> Problem | LeftOut:
  try:
    question, prompt_ids = _text_and_ids(task, example, "inputs")
    demonstration, target_ids = "", None
    if "targets" in example or "answer" not in example:
      demonstration, target_ids = _text_and_ids(task, example, "targets")
    right = _plain(example["answer"], "answer") if "answer" in example else demonstration
  except rows.RowError as error:
    return LeftOut(where, str(error))
  if verifier == verifiers.SEQIO_METRIC:
    answer = json.dumps({"task": task.name, "answer": right, "example": packed(example)})
  elif ANSWER_DATA in example:
    answer = example[ANSWER_DATA].decode()
  else:
    answer = json.dumps(right)
  return Problem(
    question,
    answer,
    demonstration or right,
    where,
    tokens=None if prompt_ids is None else (prompt_ids, target_ids),
    record=(task.name, example),
  )


def _text_and_ids(task: seqio.Task, example: Example, name: str) -> tuple[str, list[int] | None]:
  """The text of a feature, and its token ids if it has any, without the end that seqio appends."""
  value = example.get(name)
  if not (isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu"):
    return _plain(value, name), None
  feature = task.output_features.get(name)
  if feature is None:
    raise rows.RowError(f"{name}: got token ids without a feature in output_features")
  ids, text = value.tolist(), example.get(f"{name}_pretokenized")
  if ids and feature.add_eos and ids[-1] == feature.vocabulary.eos_id:
    ids.pop()
  if text is None:
    text = feature.vocabulary.decode(ids)
  return _plain(text if isinstance(text, bytes | str) else str(ids), name), ids


def _plain(value: Any, name: str) -> str:
  """A text or number as a text; RowError for anything else."""
  if isinstance(value, bytes):
    try:
      value = value.decode()
    except UnicodeDecodeError as error:
      raise rows.RowError(f"{name}: got bytes that are no UTF-8: {error!s:.100}") from None
  elif isinstance(value, np.generic):
    value = value.item()
  return rows.text(rows.Values({} if value is None else {name: value}), name)


def packed(example: Example) -> dict[str, list]:
  """An example as JSON: feature -> [type, value]."""
  text = lambda value: (
    value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
  )
  pairs = {}
  for name, value in example.items():
    array = np.asarray(value)
    if isinstance(value, bytes):
      pairs[name] = ["bytes", text(value)]
    elif array.dtype.kind in "OS":
      pairs[name] = ["object", np.vectorize(text, otypes=[object])(array).tolist()]
    else:
      pairs[name] = [str(array.dtype), array.tolist()]
  return pairs


def unpacked(pairs: dict[str, list]) -> Example:
  """Inverse of `packed`."""
  data = lambda text: text.encode("utf-8", "surrogateescape")
  example: Example = {}
  for name, (kind, value) in pairs.items():
    if kind == "bytes":
      example[name] = data(value)
    elif kind == "object":
      example[name] = np.vectorize(data, otypes=[object])(np.asarray(value, object))
    else:
      example[name] = np.asarray(value, kind)[()]  # a number, unless it is an array
  return example


def judge(name: str, example: Example, completion: str) -> float:
  """The value of a Task's first metric for a completion, as a share of that for the right answer.

  Raises:
    ValueError: the metric can't judge one example.
  """
  task = seqio.TaskRegistry.get(name)
  metric = task.predict_metric_fns[0]
  right = _text_and_ids(task, example, "targets")[0]
  value = lambda text: _first(metric(*_pair(task, example, right, text)))
  best = value(right)
  if not (math.isfinite(best) and best > 0):
    raise ValueError(
      f"seqio:{name}: its metric gives {best} to the right answer {right!r:.60}, expected a number "
      "above 0; name a verifier in task.verifier"
    )
  return value(completion) / best


def _pair(task: seqio.Task, example: Example, right: str, completion: str) -> tuple[list, list]:
  target = task.postprocess_fn(right, example=example, is_target=True)
  return [target], [task.postprocess_fn(completion, example=example, is_target=False)]


def _first(results: Mapping[str, Any]) -> float:
  numbers = list(_numbers(results).values())
  if not numbers:
    raise ValueError(f"metric: got {results!r:.100}, expected a dictionary with a number")
  return numbers[0]


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
  values = {name: getattr(value, "value", value) for name, value in results.items()}
  return {
    name: float(value)
    for name, value in values.items()
    if isinstance(value, int | float | np.number | np.ndarray) and np.ndim(value) == 0
  }


def metrics(answered: Sequence[tuple[tuple[str, Example], str]]) -> dict[str, dict[str, float]]:
  """Task -> metric -> value over all its examples, from ((Task, example), completion) of each."""
  values: dict[str, dict[str, float]] = {}
  for name in dict.fromkeys(name for (name, _), _ in answered):
    task = seqio.TaskRegistry.get(name)
    its = [(example, text) for (other, example), text in answered if other == name]
    pairs = [
      _pair(task, example, _text_and_ids(task, example, "targets")[0], text)
      for example, text in its
    ]
    targets, predictions = ([one for [one] in column] for column in zip(*pairs, strict=True))
    values[f"seqio:{name}"] = _all_values(task.predict_metric_fns, targets, predictions)
  return values


def _all_values(
  functions: Sequence[Callable], targets: list, predictions: list
) -> dict[str, float]:
  values: dict[str, float] = {}
  for function in functions:
    values |= _numbers(function(targets, predictions))
  return values
