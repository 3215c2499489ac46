"""Reads data sets that TFDS prepared. The import loads TensorFlow (seconds, and hundreds of MB)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from offpolicy_rl.tasks import quiet

with quiet.stderr_only_on_failure():  # TensorFlow reports missing CUDA drivers, twice
  import tensorflow  # noqa: F401  tensorflow_datasets would import it at its first use only
  import tensorflow_datasets


def read(name: str, data_dir: str, split: str, start: int = 0) -> Iterator[dict[str, Any]]:
  """Rows of a data set ("name:version") prepared in `data_dir`, from number `start` on.

  Nothing is downloaded.
  """
  dataset = tensorflow_datasets.load(
    name, data_dir=data_dir, split=split, shuffle_files=False, download=False
  )
  for row in dataset.skip(start).as_numpy_iterator():
    yield {key: _plain(value) for key, value in row.items()}


def splits(name: str, data_dir: str) -> dict[str, int]:
  """Split -> number of rows of a data set."""
  info = tensorflow_datasets.builder(name, data_dir=data_dir).info
  return {split: found.num_examples for split, found in info.splits.items()}


def _plain(value: Any) -> Any:
  """Texts, numbers and lists of a row; a sequence of objects is a list of them.

  Bytes that are no UTF-8 stay bytes: they may be of a column that nobody uses, and who asks for a
  text there names the row.
  """
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      return value
  if isinstance(value, dict):
    columns = {key: _plain(column) for key, column in value.items()}
    lengths = {len(column) if isinstance(column, list) else None for column in columns.values()}
    if len(lengths) != 1 or None in lengths:
      return columns
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]
  if isinstance(value, np.ndarray):
    return [_plain(one) for one in value.tolist()]
  return value.item() if isinstance(value, np.generic) else value
