"""Reads data sets that TFDS prepared. The import loads TensorFlow (seconds, and hundreds of MB)."""

from collections.abc import Iterator

from offpolicy_rl.tasks import quiet

with quiet.stderr_only_on_failure():  # TensorFlow reports missing CUDA drivers, twice
  import tensorflow_datasets


def read(name: str, data_dir: str, split: str) -> Iterator[dict[str, str]]:
  """Rows of a data set ("name:version") prepared in `data_dir`; nothing is downloaded."""
  dataset = tensorflow_datasets.load(
    name, data_dir=data_dir, split=split, shuffle_files=False, download=False
  )
  for row in dataset.as_numpy_iterator():
    yield {key: value.decode() for key, value in row.items()}
