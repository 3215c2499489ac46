"""Puts the catalog into seqio's registries, for pipelines elsewhere; a run does not need it.

Examples hold three texts: `inputs` (the question), `targets` (an answer worth imitating) and
`answer` (JSON for the verifier). The import loads seqio and TensorFlow (5 s and 0.9 GB).
"""

import hashlib
from collections.abc import Callable
from typing import Any

from offpolicy_rl.tasks import catalog, quiet

with quiet.stderr_only_on_failure():  # TensorFlow reports missing CUDA drivers, twice
  import seqio
  import tensorflow as tf


def _dataset(problems: list[catalog.Problem]) -> tf.data.Dataset:
  columns = {
    "inputs": [p.question for p in problems],
    "targets": [p.demonstration for p in problems],
    "answer": [p.answer for p in problems],
  }
  return tf.data.Dataset.from_tensor_slices(columns)


def _add(name: str, problems: Callable[[str], list[catalog.Problem]]) -> None:
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
    metric_fns=[],
  )


for _task in catalog.TASKS.values():
  _add(_task.name, _task.split)


def register(selection: catalog.Selection, settings: str) -> str:
  """Registers the tasks of a configuration with seqio; returns the name of the task or mixture.

  `settings`: text of everything that decides the problems; equal texts share one entry.
  """
  if selection.name in catalog.TASKS:
    return selection.name
  name = f"{selection.name}:{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
  if name in (*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()):
    return name
  if len(selection.tasks) == 1:
    _add(name, selection.tasks[0].split)
    return name
  members = [f"{name}:{i}" for i in range(len(selection.tasks))]
  for i, member in enumerate(members):
    _add(member, lambda split, i=i: selection.split(split)[i])
  seqio.MixtureRegistry.add(name, list(zip(members, selection.rates, strict=True)))
  return name
