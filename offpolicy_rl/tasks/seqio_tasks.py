"""The catalog as seqio tasks, and reading any seqio task or mixture into memory.

The only file that imports seqio and TensorFlow (7 s and 0.9 GB): import it where it is needed.
A task may come from anywhere as long as its examples hold three texts: `inputs` (the question),
`targets` (an answer worth imitating) and `answer` (JSON for the verifier).
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from offpolicy_rl.tasks import catalog, quiet

with quiet.stderr_only_on_failure():  # TensorFlow reports missing CUDA drivers, twice
  import seqio
  import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt, ready for a ticket or for the supervised warm start."""

  prompt_tokens: np.ndarray  # int32 [P]
  demonstration_tokens: np.ndarray  # int32 [T], ends with the end-of-sequence token
  answer: str


def _dataset(problems: list[catalog.Problem]) -> tf.data.Dataset:
  columns = {
    "inputs": [p.question for p in problems],
    "targets": [p.demonstration for p in problems],
    "answer": [p.answer for p in problems],
  }
  return tf.data.Dataset.from_tensor_slices(columns)


def _add(name: str, problems: Callable[[str], list[catalog.Problem]]) -> None:
  """Adds a task to seqio's registry; `problems(split)` lists them."""
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(
      # The order stays ours (a resume must find it again), hence no shuffling here.
      dataset_fn=lambda split, shuffle_files=False, seed=None: _dataset(problems(split)),
      splits=(catalog.TRAIN_SPLIT, catalog.HELDOUT_SPLIT),
    ),
    preprocessors=[],
    output_features={},  # texts: which token ids they become is the model's affair
    metric_fns=[],
  )


for _task in catalog.TASKS.values():
  _add(_task.name, _task.split)


def register(selection: catalog.Selection, settings: str) -> str:
  """Adds what a configuration asks for to seqio's registries; returns the name there.

  `settings`: everything that decides the problems, as text: equal ones are one entry.
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


def load(name: str, split: str, words, max_prompt_tokens: int) -> tuple[list[Example], int]:
  """(examples of a registered task or mixture, number skipped because the prompt is too long).

  `words`: the policy's Vocabulary or Tokenizer.
  """
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    sequence_length=None, split=split, shuffle=False
  )
  examples, skipped = [], 0
  for row in dataset.as_numpy_iterator():
    prompt = words.prompt(row["inputs"].decode())
    if len(prompt) > max_prompt_tokens:
      skipped += 1
      continue
    target = [*words.encode(row["targets"].decode()), words.eos]
    examples.append(
      Example(np.array(prompt, np.int32), np.array(target, np.int32), row["answer"].decode())
    )
  return examples, skipped


def load_members(
  name: str, split: str, words, max_prompt_tokens: int
) -> tuple[list[tuple[float, list[Example]]], int]:
  """([(rate, examples) of each task of a mixture], number skipped); of a task: one, at rate 1.

  How the members interleave is `stream`'s affair: seqio's own order of a mixture can't be entered
  in the middle, which a resumed run must do.
  """
  found = seqio.get_mixture_or_task(name)
  if isinstance(found, seqio.Task):
    examples, skipped = load(name, split, words, max_prompt_tokens)
    return [(1.0, examples)], skipped
  loaded = [load(task.name, split, words, max_prompt_tokens) for task in found.tasks]
  rates = [float(found.get_rate(task)) for task in found.tasks]
  members = [(rate / sum(rates), e) for rate, (e, _) in zip(rates, loaded, strict=True)]
  return members, sum(skipped for _, skipped in loaded)


def tfds_rows(name: str, data_dir: str, split: str) -> Iterator[dict[str, str]]:
  """Rows of a data set ("name:version") that TFDS prepared in `data_dir`; nothing is downloaded."""
  source = seqio.TfdsDataSource(
    tfds_name=name, tfds_data_dir=data_dir, splits=[split], read_only=True
  )
  dataset = source.get_dataset(split, shuffle=False)
  for row in dataset.as_numpy_iterator():
    yield {key: value.decode() for key, value in row.items()}
