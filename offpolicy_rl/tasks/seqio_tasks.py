"""Puts the catalog into seqio's registries: the same definitions, read with TensorFlow.

Examples hold three texts: `inputs` (the question), `targets` (an answer worth imitating) and
`answer_data` (JSON for the verifier). The metric `accuracy` asks the task's verifier. The import
loads seqio and TensorFlow (5 s and 0.9 GB).
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from offpolicy_rl.tasks import catalog, quiet, scoring, seqio_reader

with quiet.stderr_only_on_failure():  # TensorFlow reports missing CUDA drivers, twice
  import seqio
  import tensorflow as tf


def _dataset(problems: list[catalog.Problem]) -> tf.data.Dataset:
  columns = {
    "inputs": [p.question for p in problems],
    "targets": [p.demonstration for p in problems],
    seqio_reader.ANSWER_DATA: [p.answer for p in problems],
  }
  return tf.data.Dataset.from_tensor_slices(columns)


def _postprocess(text: str, *, example: dict[str, Any], is_target: bool = False) -> str:
  return example[seqio_reader.ANSWER_DATA].decode() if is_target else text


def _accuracy(verifier: str, others: Sequence[str] = ()) -> Callable:
  def accuracy(targets: list[str], predictions: list[str]) -> dict[str, float]:
    scoring.allow([verifier, *others])
    judge = scoring.allowed(verifier)
    pairs = zip(predictions, targets, strict=True)
    right = [judge(completion, answer) == 1.0 for completion, answer in pairs]
    return {"accuracy": 100 * sum(right) / len(right)}

  return accuracy


def _add(
  name: str, problems: Callable[[str], list[catalog.Problem]], metrics: Sequence[Callable]
) -> None:
  source: Any = seqio.FunctionDataSource(
    # The order stays ours (a resume must find it again), hence no shuffling here.
    dataset_fn=lambda split, shuffle_files=False, seed=None: _dataset(problems(split)),
    splits=(catalog.TRAIN_SPLIT, catalog.HELDOUT_SPLIT),
  )
  seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[],
    output_features={},  # texts; the model's tokenizer decides the token ids
    postprocess_fn=_postprocess,
    metric_fns=metrics,
  )


for _task in catalog.TASKS.values():
  _add(_task.name, _task.split, [_accuracy(_task.verifier)])


def register(selection: catalog.Selection, settings: str) -> str:
  """Registers the tasks of a configuration with seqio; returns the name of the task or mixture.

  Tasks that are played in environments have no metric: no completion of one turn answers them.

  `settings`: text of everything that decides the problems; equal texts share one entry.
  """
  if selection.name in catalog.TASKS:
    return selection.name
  name = f"{selection.name}:{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
  if name in (*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()):
    return name
  judges = [_accuracy(selection.verifier, selection.verifiers if selection.mixed else ())]
  metrics = [[] if task.environment else judges for task in selection.tasks]
  if len(selection.tasks) == 1:
    _add(name, selection.tasks[0].split, metrics[0])
    return name
  members = [f"{name}:{i}" for i in range(len(selection.tasks))]
  for i, member in enumerate(members):
    problems = lambda split, i=i: selection.split(split)[i]
    _add(member, problems, metrics[i])
  seqio.MixtureRegistry.add(name, list(zip(members, selection.rates, strict=True)))
  return name
