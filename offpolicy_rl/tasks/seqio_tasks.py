"""The catalog as seqio tasks, and reading any seqio task or mixture into memory.

The only file that imports seqio and TensorFlow (7 s and 0.9 GB): import it where it is needed.
A task may come from anywhere as long as its examples hold three texts: `inputs` (the question),
`targets` (an answer worth imitating) and `answer` (JSON for the verifier).
"""

import dataclasses

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


def _dataset(task: catalog.Task, split: str) -> tf.data.Dataset:
  problems = task.split(split)
  columns = {
    "inputs": [p.question for p in problems],
    "targets": [p.demonstration for p in problems],
    "answer": [p.answer for p in problems],
  }
  return tf.data.Dataset.from_tensor_slices(columns)


def register(task: catalog.Task) -> None:
  """Adds a catalog task to seqio's registry under its name."""
  seqio.TaskRegistry.add(
    task.name,
    source=seqio.FunctionDataSource(
      # The order stays ours (a resume must find it again), hence no shuffling here.
      dataset_fn=lambda split, shuffle_files=False, seed=None: _dataset(task, split),
      splits=(catalog.TRAIN_SPLIT, catalog.HELDOUT_SPLIT),
    ),
    preprocessors=[],
    output_features={},  # texts: which token ids they become is the model's affair
    metric_fns=[],
  )


for _task in catalog.TASKS.values():
  register(_task)


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
