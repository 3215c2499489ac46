"""Problems from generators, data files and prepared TFDS directories.

An unusable row of a file is listed as `rows.LeftOut` in its place. TensorFlow is loaded only to
read what TFDS prepared.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from offpolicy_rl.tasks import extraction, rows, verifiers
from offpolicy_rl.tasks.rows import LeftOut, TaskError

_GSM8K = "gsm8k:1.0.0"  # in TFDS
# Tasks of reasoning-gym 0.1.25 with a catch; verifiers.REFUSED lists those that are no use.
WARNED = {
  "prime_factorization": "its scorer raises on text without numbers; those count as failures"
} | dict.fromkeys(
  ("knight_swap", "sokoban", "futoshiki", "zebra_puzzles"), "it takes up to a second per problem"
)


@dataclasses.dataclass(frozen=True)
class Problem:
  """A question, and the data by which a verifier judges an answer to it."""

  question: str
  answer: str  # JSON
  demonstration: str  # an answer worth imitating
  where: str = dataclasses.field(default="", compare=False)  # "file:line"; "" = in no file


Listed = list[Problem | LeftOut]


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of the fields of a row."""

  question: str
  answer: str
  demonstration: str = ""  # "" = the answer


def reasoning_gym(
  dataset: str, size: int, *, keep: Callable[[dict], bool] = lambda entry: True, **options: Any
) -> list[Problem]:
  """Problems of a reasoning-gym data set, https://github.com/open-thought/reasoning-gym.

  Draws `size` entries with the package's `options`, and keeps those for which `keep` is true.
  """
  return [
    Problem(
      question=entry["question"],
      answer=verifiers.dumps({"dataset": dataset, "entry": entry}),
      demonstration=entry["answer"],
    )
    for entry in _gym_entries(dataset, size, options)
    if keep(entry)
  ]


def check_gym() -> None:
  """Raises TaskError when the package is missing."""
  if importlib.util.find_spec("reasoning_gym") is None:
    raise TaskError("task.name: needs the package reasoning-gym: pip install offpolicy-rl[gym]")


def check_gym_options(dataset: str, options: dict) -> None:
  """Raises TaskError when the package, the data set or an option is missing."""
  check_gym()
  next(iter(_gym_entries(dataset, 1, options)))


def _gym_entries(dataset: str, size: int, options: dict):
  import reasoning_gym  # about 2 s to import; only those who need problems pay

  try:
    return reasoning_gym.create_dataset(dataset, size=size, seed=0, **options)
  except (ValueError, TypeError, AssertionError) as error:
    raise TaskError(
      f"task.options: got {json.dumps(options)} for reasoning_gym:{dataset}: {error}"
    ) from None


def jsonl(path: str, columns: Columns) -> Listed:
  """Problems of a file with a question and an answer, a text or a number, in every row."""

  def problem(row: rows.Row) -> Problem:
    return Problem(
      question=rows.text(row.values, columns.question),
      answer=json.dumps(rows.text(row.values, columns.answer)),
      demonstration=rows.text(row.values, columns.demonstration or columns.answer),
      where=row.where,
    )

  return _problems(rows.read(pathlib.Path(path)), problem)


def gsm8k(data_dir: str, split: str) -> Listed:
  """Grade-school word problems (arXiv 2110.14168): the answer is the number after ####.

  The demonstration is the worked solution without the calculator's annotations <<48/2=24>>.

  Args:
    split: "train" or "test"; read from its file if there is one, else as TFDS prepared it.
  """
  return _problems(_gsm8k_rows(data_dir, split), _gsm8k_problem)


def _gsm8k_rows(data_dir: str, split: str) -> Iterator[rows.Row | LeftOut]:
  folder = _gsm8k_folder(data_dir)
  path = split_file(folder, split)
  if path.is_file():
    return rows.read(path)
  from offpolicy_rl.tasks import tfds  # TensorFlow, only here

  prepared = tfds.read(_GSM8K, str(folder), split)
  return (rows.Row(f"{folder}: {split} {i}", rows.Values(row)) for i, row in enumerate(prepared))


def _gsm8k_problem(row: rows.Row) -> Problem:
  solution = rows.text(row.values, "answer")
  answer = solution.rpartition("####")[2].strip() if "####" in solution else ""
  if not answer:
    raise rows.RowError(f"answer: got {solution[-60:]!r}, expected '#### number' at its end")
  demonstration = re.sub(r"<<[^<>]*>>", "", solution)
  return Problem(rows.text(row.values, "question"), json.dumps(answer), demonstration, row.where)


def math(path: pathlib.Path) -> Listed:
  r"""MATH (arXiv 2103.03874): columns `problem`, and `answer` or a `solution` with \boxed in it."""
  return _problems(rows.read(path), _math_problem)


def _math_problem(row: rows.Row) -> Problem:
  texts = {  # a column that is null or blank counts as missing
    column: rows.text(row.values, column)
    for column in ("answer", "solution")
    if not _is_blank(row.values.get(column))
  }
  solution = texts.get("solution", "")
  answer = texts.get("answer") or extraction.last_boxed(solution)
  if not answer:
    raise rows.RowError("got neither answer nor \\boxed{...} in solution")
  demonstration = solution or f"\\boxed{{{answer}}}"
  return Problem(rows.text(row.values, "problem"), json.dumps(answer), demonstration, row.where)


def _problems(read: Iterable[rows.Row | LeftOut], make: Callable[[rows.Row], Problem]) -> Listed:
  """The problems that `make` returns; a row for which it raises RowError is left out."""
  listed: Listed = []
  for row in read:
    try:
      listed.append(row if isinstance(row, LeftOut) else make(row))
    except rows.RowError as error:
      listed.append(LeftOut(row.where, str(error)))
  return listed


def _is_blank(value) -> bool:
  return value is None or (isinstance(value, str) and not value.strip())


def _gsm8k_folder(data_dir: str) -> pathlib.Path:
  folder = data_dir or os.environ.get("GSM8K_DIR") or os.environ.get("TFDS_DATA_DIR")
  return pathlib.Path(folder or "~/tensorflow_datasets").expanduser()


def split_file(folder: pathlib.Path, split: str) -> pathlib.Path:
  """SPLIT.jsonl, or SPLIT.jsonl.gz or SPLIT.parquet if only that is there."""
  paths = [folder / f"{split}{suffix}" for suffix in (".jsonl", ".jsonl.gz", ".parquet")]
  return next((path for path in paths if path.is_file()), paths[0])


def gsm8k_has_files(data_dir: str) -> bool:
  """Whether both splits are there as files."""
  folder = _gsm8k_folder(data_dir)
  return all(split_file(folder, split).is_file() for split in ("train", "test"))


def check_gsm8k(data_dir: str) -> None:
  """Raises TaskError unless GSM8K is there as files or as TFDS prepared it."""
  folder = _gsm8k_folder(data_dir)
  prepared = folder / _GSM8K.replace(":", "/") / "dataset_info.json"
  if not gsm8k_has_files(data_dir) and not prepared.is_file():
    raise TaskError(
      f"task.data_dir: {folder} has neither train.jsonl and test.jsonl of GSM8K nor what "
      "`tfds build gsm8k --data_dir=DIR` leaves in a DIR; prepare one and name it there or in "
      "GSM8K_DIR"
    )


def check_file(key: str, path: str | pathlib.Path) -> None:
  """Raises TaskError if there is no such file."""
  if not pathlib.Path(path).is_file():
    raise TaskError(f"{key}: got {str(path)!r}, expected a file with one JSON object per line")
