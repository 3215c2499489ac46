"""The catalog as seqio tasks, and reading any seqio task or mixture into memory.

The only file that imports seqio and TensorFlow (7 s and 0.9 GB): import it where it is needed.
A task may come from anywhere as long as its examples hold `inputs` and `targets` (token ids) and
`answer` (JSON text for the verifier).
"""

import dataclasses

import numpy as np

from offpolicy_rl.tasks import catalog, quiet
from offpolicy_rl.tasks.vocabulary import EOS, UNKNOWN, Vocabulary

with quiet.stderr_only_on_failure():  # TensorFlow reports missing CUDA drivers, twice
  import seqio
  import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Example:
  """One prompt, ready for a ticket or for the supervised warm start."""

  prompt_tokens: np.ndarray  # int32 [P]
  demonstration_tokens: np.ndarray  # int32 [T], ends with the end-of-sequence token
  answer: str


class _SeqioVocabulary(seqio.Vocabulary):
  """Our vocabulary behind seqio's interface."""

  def __init__(self, vocabulary: Vocabulary):
    super().__init__()
    self._vocabulary = vocabulary

  @property
  def bos_id(self):
    return None

  @property
  def eos_id(self):
    return EOS

  @property
  def unk_id(self):
    return UNKNOWN

  @property
  def _base_vocab_size(self):
    return self._vocabulary.size

  def _encode(self, s):
    return self._vocabulary.encode(s)

  def _decode(self, ids):
    return self._vocabulary.decode(ids)

  def _encode_tf(self, s):
    encode = lambda text: np.array(self._vocabulary.encode(text.decode()), np.int32)
    ids = tf.numpy_function(encode, [s], tf.int32)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids):
    return tf.numpy_function(lambda x: self._vocabulary.decode(x), [ids], tf.string)


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
  vocabulary = _SeqioVocabulary(task.vocabulary)
  seqio.TaskRegistry.add(
    task.name,
    source=seqio.FunctionDataSource(
      # The order stays ours (a resume must find it again), hence no shuffling here.
      dataset_fn=lambda split, shuffle_files=False, seed=None: _dataset(task, split),
      splits=(catalog.TRAIN_SPLIT, catalog.HELDOUT_SPLIT),
    ),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={
      "inputs": seqio.Feature(vocabulary, add_eos=False),
      "targets": seqio.Feature(vocabulary, add_eos=True),
    },
    metric_fns=[],
  )


for _task in catalog.TASKS.values():
  register(_task)


def load(name: str, split: str, max_prompt_tokens: int) -> tuple[list[Example], int]:
  """(examples of a registered task or mixture, number skipped because the prompt is too long)."""
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    sequence_length=None, split=split, shuffle=False
  )
  examples, skipped = [], 0
  for row in dataset.as_numpy_iterator():
    if row["inputs"].size > max_prompt_tokens:
      skipped += 1
      continue
    prompt, target = row["inputs"].astype(np.int32), row["targets"].astype(np.int32)
    examples.append(Example(prompt, target, row["answer"].decode()))
  return examples, skipped
