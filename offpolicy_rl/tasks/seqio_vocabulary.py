"""Vocabularies of seqio: a model's own, and whether another one has the same token ids.

The import loads seqio and TensorFlow.
"""

import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from offpolicy_rl.tasks import quiet
from offpolicy_rl.tasks import tokenizer as tokenizer_lib
from offpolicy_rl.tasks.tokenizer import Tokenizer
from offpolicy_rl.tasks.vocabulary import Vocabulary

with quiet.stderr_only_on_failure():  # TensorFlow reports missing CUDA drivers, twice
  import seqio
  import tensorflow as tf

_FEATURES = ("inputs", "targets")
# Texts on which two tokenizers that differ are likely to differ.
_PROBES = ("1 + 1 = 2", "The answer is 1,234.5 apples.", "x^2-3x+2=0", "Hello  world")


class ModelVocabulary(seqio.Vocabulary):
  """The tokenizer of a model, for features of a seqio Task."""

  def __init__(self, tokenizer: Tokenizer | Vocabulary):
    super().__init__()
    self.tokenizer = tokenizer

  @property
  def eos_id(self) -> int:
    """The token that ends a text."""
    return self.tokenizer.eos

  @property
  def unk_id(self) -> None:
    """None: all ids are the model's."""
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self.tokenizer.size

  def _encode(self, s: str) -> list[int]:
    return self.tokenizer.encode(s)

  def _decode(self, ids: Iterable[int]) -> str:
    return self.tokenizer.decode_all(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    encode = lambda text: np.array(self._encode(text.decode()), np.int32)
    ids = tf.numpy_function(encode, [s], tf.int32)
    ids.set_shape([None])
    return ids

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    text = tf.numpy_function(lambda row: self._decode(row.tolist()).encode(), [ids], tf.string)
    text.set_shape([])
    return text

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, ModelVocabulary)
      and other.tokenizer.fingerprint == self.tokenizer.fingerprint
    )

  def __hash__(self) -> int:
    return hash(self.tokenizer.fingerprint)


def of_checkpoint(directory: str) -> ModelVocabulary:
  """The vocabulary of a published checkpoint, model.checkpoint of the runs that read the Task."""
  return ModelVocabulary(Tokenizer(tokenizer_lib.read_files(pathlib.Path(directory)), chat=False))


def of_fresh_model() -> ModelVocabulary:
  """The characters of a fresh model."""
  return ModelVocabulary(Vocabulary())


def why_other_ids(
  features: Mapping[str, seqio.Feature], tokenizer: Tokenizer | Vocabulary
) -> str | None:
  """Says why the token ids of a Task's features are not the model's; None if they are."""
  for name in _FEATURES:
    feature = features.get(name)
    if feature is not None and feature.dtype.is_integer:
      why = _why_other(feature.vocabulary, tokenizer)
      if why:
        return (
          f"output_features: {name}: {why}; expected the model's token ids: see "
          "seqio_vocabulary.of_checkpoint, or leave it a text"
        )
  return None


def _why_other(vocabulary: seqio.Vocabulary, tokenizer: Tokenizer | Vocabulary) -> str | None:
  if isinstance(vocabulary, ModelVocabulary):
    same = _ids(vocabulary.tokenizer) == _ids(tokenizer)
    return None if same else "got the token ids of another model"
  if isinstance(vocabulary, seqio.PassThroughVocabulary):
    return "got a PassThroughVocabulary, whose token ids have no texts to compare"
  size = vocabulary.vocab_size - vocabulary.extra_ids
  if size > tokenizer.size:
    return f"got {size} token ids, the model has {tokenizer.size}"
  special = {vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id, *tokenizer.ends}
  special |= set(getattr(tokenizer, "special", ()))
  for i in range(size):
    ours, theirs = _bare(tokenizer.decode_all([i])), _bare(vocabulary.decode([i]))
    if i not in special and ours != theirs:
      return f"got {theirs!r} for token {i}, which is {ours!r} in the model"
  for text in _PROBES:
    if list(vocabulary.encode(text)) != list(tokenizer.encode(text)):
      return f"got other token ids for {text!r} than the model has"
  return None


def _ids(tokenizer: Tokenizer | Vocabulary) -> Sequence:
  texts = [tokenizer.decode_special([i]) for i in range(tokenizer.size)]
  return [*texts, *(tokenizer.encode(text) for text in _PROBES)]


def _bare(text: str) -> str:
  return text.replace("\ufffd", "").strip()
