"""A registry of ten million prompts: two Tasks of seven and three, and a Mixture by size."""

import seqio
import tensorflow as tf

SIZES = {"sevens": 7_000_000, "threes": 3_000_000}


def numbers(size: int):
  """The question n+1= for every n below `size`."""

  def dataset(split: str, shuffle_files: bool) -> tf.data.Dataset:
    del split, shuffle_files
    return tf.data.Dataset.range(size).map(
      lambda n: {"inputs": tf.strings.as_string(n) + "+1=", "targets": tf.strings.as_string(n + 1)}
    )

  return dataset


for name, size in SIZES.items():
  source = seqio.FunctionDataSource(numbers(size), ["train"], {"train": size})
  seqio.TaskRegistry.add(name, source, output_features={})
seqio.MixtureRegistry.add("all", list(SIZES), default_rate=seqio.mixing_rate_num_examples)
