"""A registry as a stranger writes it: three Tasks and a Mixture, over files in STRANGERS_DIR."""

import functools
import os
import pathlib

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from offpolicy_rl.tasks import seqio_vocabulary

FOLDER = pathlib.Path(os.environ["STRANGERS_DIR"])
PAIRS = [(a, b) for a in range(10) for b in range(10)]


def prepare(folder: pathlib.Path) -> None:
  """Writes the data: what TFDS prepares, and lines of text."""
  sums = {
    "question": [f"{a}+{b}=" for a, b in PAIRS],
    "solution": [str(a + b) for a, b in PAIRS],
    "level": [a for a, _ in PAIRS],
  }
  part = lambda start, end: tf.data.Dataset.from_tensor_slices(
    {name: column[start:end] for name, column in sums.items()}
  )
  text = tfds.features.Text()
  tfds.dataset_builders.store_as_tfds_dataset(
    name="stranger_sums",
    version="1.0.0",
    features=tfds.features.FeaturesDict({"question": text, "solution": text, "level": tf.int32}),
    split_datasets={"train": part(10, 100), "validation": part(0, 10)},
    data_dir=folder,
  )
  lines = [f"{a},{b}" for a, b in PAIRS]
  (folder / "train.txt").write_text("\n".join(lines[5:]) + "\n")
  (folder / "test.txt").write_text("\n".join(lines[:5]) + "\n")


def small_products(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Drops products of two digits."""

  def parsed(line):
    factors = tf.strings.to_number(tf.strings.split(line, ","), tf.int32)
    return {"product": factors[0] * factors[1], "line": line}

  def texts(row):
    return {
      "inputs": tf.strings.regex_replace(row["line"], ",", "*") + "=",
      "targets": tf.strings.as_string(row["product"]),
    }

  return dataset.map(parsed).filter(lambda row: row["product"] < 10).map(texts)


def differences(split: str, shuffle_files: bool) -> tf.data.Dataset:
  """Pairs, without a seed in the signature."""
  del shuffle_files
  some = [pair for i, pair in enumerate(PAIRS) if (i % 5 == 0) == (split == "validation")]
  return tf.data.Dataset.from_tensor_slices({"pair": some})


@seqio.map_over_dataset(num_seeds=1)
def ordered(row, seed):
  """Rewrites: the larger number stands first; equal ones get a random third."""
  low, high = tf.reduce_min(row["pair"]), tf.reduce_max(row["pair"])
  high += tf.random.stateless_uniform([], seed, 0, 9 - high + 1, tf.int32)
  return {
    "inputs": tf.strings.as_string(high) + "-" + tf.strings.as_string(low) + "=",
    "targets": tf.strings.as_string(high - low),
  }


def number(text: str, *, example: dict, is_target: bool = False) -> int:
  """The number in a text; -1 for none."""
  assert example["inputs_pretokenized"].endswith(b"=") and isinstance(is_target, bool)
  return int(text) if text.strip().isdigit() else -1


def equal(targets: list[int], predictions: list[int]) -> dict[str, float]:
  """Percentages, and a count."""
  right = [a == b for a, b in zip(targets, predictions, strict=True)]
  return {"right": 100 * sum(right) / len(right), "judged": len(right)}


FEATURE = seqio.Feature(seqio_vocabulary.of_fresh_model(), add_eos=True)
add = functools.partial(
  seqio.TaskRegistry.add,
  output_features={"inputs": FEATURE, "targets": FEATURE},
  postprocess_fn=number,
  metric_fns=[equal],
)
TOKENS = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
RENAMED = {"inputs": "question", "targets": "solution"}
add(
  "strangers_sums",
  seqio.TfdsDataSource("stranger_sums:1.0.0", tfds_data_dir=str(FOLDER)),
  preprocessors=[functools.partial(seqio.preprocessors.rekey, key_map=RENAMED), *TOKENS],
)
add(
  "strangers_products",
  seqio.TextLineDataSource({split: str(FOLDER / f"{split}.txt") for split in ("train", "test")}),
  preprocessors=[small_products, *TOKENS],
)
add(
  "strangers_differences",
  seqio.FunctionDataSource(differences, ["train", "validation"], {"train": 80, "validation": 20}),
  preprocessors=[ordered, *TOKENS],
)
seqio.MixtureRegistry.add(
  "strangers",
  [
    ("strangers_sums", 40),
    ("strangers_products", 40.0),
    ("strangers_differences", functools.partial(seqio.mixing_rate_num_examples, maximum=20)),
  ],
)
