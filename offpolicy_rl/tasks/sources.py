"""Where problems come from: generators, JSONL files, prepared TFDS directories.

Every function here returns functions that list problems, so nothing is read or imported before
somebody needs it. Free of TensorFlow, except for reading what TFDS prepared.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator

from offpolicy_rl.tasks import extraction, verifiers

_GSM8K = "gsm8k:1.0.0"  # in TFDS
# Tasks of reasoning-gym 0.1.25 with a catch; those that are no use: verifiers.REFUSED.
WARNED = {
  "prime_factorization": "its scorer raises on text without numbers; those count as failures",
} | dict.fromkeys(
  ("knight_swap", "sokoban", "futoshiki", "zebra_puzzles"), "it takes up to a second per problem"
)


class TaskError(ValueError):
  """Problems that can't be had; names the key or the file and line, and what was expected."""


@dataclasses.dataclass(frozen=True)
class Problem:
  """One question with what the verifier needs to judge an answer to it."""

  question: str
  answer: str  # JSON
  demonstration: str  # an answer worth imitating


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of the fields of a JSONL row."""

  question: str
  answer: str
  demonstration: str = ""  # "" = the answer


def reasoning_gym(
  dataset: str, size: int, *, keep: Callable[[dict], bool] = lambda entry: True, **options
) -> Callable[[], list[Problem]]:
  """Problems of a reasoning-gym data set, https://github.com/open-thought/reasoning-gym.

  `size` entries are drawn with the package's `options`; `keep` says which of them stay.
  """

  @functools.cache
  def problems():
    """Draws them, once."""
    return [
      Problem(
        question=entry["question"],
        answer=verifiers.dumps({"dataset": dataset, "entry": entry}),
        demonstration=entry["answer"],
      )
      for entry in _gym_entries(dataset, size, options)
      if keep(entry)
    ]

  return problems


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


def jsonl(path: str, columns: Columns) -> Callable[[], list[Problem]]:
  """Problems of a file with one JSON object per line; the answer is a text or a number."""

  @functools.cache
  def problems():
    """Reads them, once."""
    return [
      Problem(
        question=_text(row, columns.question, where),
        answer=json.dumps(_text(row, columns.answer, where)),
        demonstration=_text(row, columns.demonstration or columns.answer, where),
      )
      for where, row in _rows(pathlib.Path(path))
    ]

  return problems


def gsm8k(rows: Callable[[], Iterator[tuple[str, dict]]]) -> Callable[[], list[Problem]]:
  """Grade-school word problems (arXiv 2110.14168): the answer is the number after ####.

  The demonstration is the worked solution without the calculator's annotations <<48/2=24>>.
  """

  @functools.cache
  def problems():
    """Reads them, once."""
    found = []
    for where, row in rows():
      solution = _text(row, "answer", where)
      _, mark, answer = solution.rpartition("####")
      if not mark:
        raise TaskError(
          f"{where}: answer: got {solution[-60:]!r}, expected '#### number' at its end"
        )
      shown = re.sub(r"<<[^<>]*>>", "", solution)
      found.append(Problem(_text(row, "question", where), json.dumps(answer.strip()), shown))
    return found

  return problems


def math(path: pathlib.Path) -> Callable[[], list[Problem]]:
  r"""MATH (arXiv 2103.03874): columns `problem`, and `answer` or a `solution` with \boxed in it."""

  @functools.cache
  def problems():
    """Reads them, once."""
    found = []
    for where, row in _rows(path):
      solution = str(row.get("solution", ""))
      answer = row.get("answer")
      answer = extraction.last_boxed(solution) if answer is None else str(answer)
      if not answer:
        raise TaskError(f"{where}: got neither answer nor \\boxed{{...}} in solution")
      shown = solution or f"\\boxed{{{answer}}}"
      found.append(Problem(_text(row, "problem", where), json.dumps(answer), shown))
    return found

  return problems


def gsm8k_rows(data_dir: str, split: str) -> Callable[[], Iterator[tuple[str, dict]]]:
  """Rows of a split ("train", "test"): JSONL if the directory has it, else as TFDS prepared it."""
  folder = gsm8k_folder(data_dir)

  def rows():
    """("file:line", row) of the split."""
    path = folder / f"{split}.jsonl"
    if path.is_file():
      return _rows(path)
    from offpolicy_rl.tasks import seqio_tasks  # TensorFlow, only here

    found = seqio_tasks.tfds_rows(_GSM8K, str(folder), split)
    return ((f"{folder}: {split} {i}", row) for i, row in enumerate(found))

  return rows


def gsm8k_folder(data_dir: str) -> pathlib.Path:
  """task.data_dir, or where the environment says GSM8K is, or TFDS's own place."""
  asked = data_dir or os.environ.get("GSM8K_DIR") or os.environ.get("TFDS_DATA_DIR")
  return pathlib.Path(asked or "~/tensorflow_datasets").expanduser()


def check_gsm8k(data_dir: str) -> None:
  """Raises TaskError unless one of the two forms is there."""
  folder = gsm8k_folder(data_dir)
  as_jsonl = all((folder / f"{split}.jsonl").is_file() for split in ("train", "test"))
  if not as_jsonl and not (folder / _GSM8K.replace(":", "/") / "dataset_info.json").is_file():
    raise TaskError(
      f"task.data_dir: {folder} has neither train.jsonl and test.jsonl of GSM8K nor what "
      "`tfds build gsm8k --data_dir=DIR` leaves in a DIR; prepare one and name it there or in "
      "GSM8K_DIR"
    )


def check_file(key: str, path: str | pathlib.Path) -> None:
  """Raises TaskError when there is no such file."""
  if not pathlib.Path(path).is_file():
    raise TaskError(f"{key}: got {str(path)!r}, expected a file with one JSON object per line")


def _rows(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
  """("file:line", object) of a JSONL file; blank lines are passed over."""
  with path.open(encoding="utf-8") as lines:
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      where = f"{path}:{number}"
      try:
        row = json.loads(line)
      except ValueError as error:
        raise TaskError(f"{where}: no JSON: {error}") from None
      if not isinstance(row, dict):
        raise TaskError(f"{where}: got {type(row).__name__}, expected an object")
      yield where, row


def _text(row: dict, column: str, where: str) -> str:
  value = row.get(column)
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    given = f"{value!r:.60}" if column in row else f"only the columns {sorted(row)}"
    raise TaskError(f"{where}: {column}: got {given}, expected a text or a number")
  return str(value)
