"""Problems from generators, data files and prepared TFDS directories.

An unusable row of a file is listed as `rows.LeftOut` in its place. TensorFlow is loaded only to
read what TFDS prepared.
"""

import dataclasses
import difflib
import importlib.util
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from offpolicy_rl.system import nearby
from offpolicy_rl.tasks import extraction, rows, stream, verifiers
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
  demonstration: str = ""  # an answer worth imitating; "" = none
  where: str = dataclasses.field(default="", compare=False)  # "file:line"; "" = in no file
  messages: tuple[dict[str, str], ...] = ()  # a chat that ends with the question; () = a text
  # Token ids of the question and the demonstration, where the task brings its own.
  tokens: tuple[Sequence[int], Sequence[int] | None] | None = dataclasses.field(
    default=None, compare=False
  )
  record: Any = dataclasses.field(default=None, compare=False)  # the example for a seqio metric


Listed = list[Problem | LeftOut]


class Beginning(list[Problem | LeftOut]):
  """The first problems of a source that is too large to list."""

  def __init__(self, first: Iterable[Problem | LeftOut], opener: Callable[[int], Iterator]):
    """`opener`: the problems of one pass, from this one on, always in the same order."""
    super().__init__(first)
    self.open = opener


def listed(opener: Callable[[int], Iterator], most: int, size: int | None = None) -> Listed:
  """All problems of a source, or its beginning if there are more than `most`.

  Args:
    opener: as for `Beginning`.
    size: number of problems at most; None = not known.
  """
  if size is None or size <= most:
    first = list(itertools.islice(opener(0), most + 1))
    if len(first) <= most:
      return first
    return Beginning(first[: stream.BLOCK], opener)
  return Beginning(itertools.islice(opener(0), stream.BLOCK), opener)


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of the fields of a row."""

  question: str
  answer: str
  demonstration: str = ""  # "" = the answer, of tests none
  tests: bool = False  # the answer is data for the verifier `code`, as JSON or in a text

  def problem(self, row: rows.Row) -> "Problem":
    """The problem in a row; RowError if it has none."""
    for role in ("question", "answer", "demonstration"):
      self._require(row.values, role)
    question, messages = rows.chat(row.values, self.question)
    read = rows.data if self.tests else rows.text
    shown = self.demonstration or (self.answer if not self.tests else "")
    return Problem(
      question=question,
      answer=json.dumps(read(row.values, self.answer)),
      demonstration=rows.text(row.values, shown) if shown else "",
      where=row.where,
      messages=messages,
    )

  def _require(self, values: rows.Values, role: str) -> None:
    name = getattr(self, role)
    if not name or name in values:
      return
    lower = {other.casefold(): other for other in values}
    similar = [lower[other] for other in difflib.get_close_matches(name.casefold(), lower, n=1)]
    meant = similar[0] if similar else "NAME"
    raise rows.RowError(
      f"{name}: got only the columns {sorted(values)!s:.200}, expected {name}, or another by "
      f"--config.task.{role}_column={meant}"
    )


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
  check_package("reasoning_gym", "reasoning-gym", extra="gym")


def check_package(module: str, package: str, *, extra: str) -> None:
  """Raises TaskError when a package that an extra brings is missing."""
  if importlib.util.find_spec(module) is None:
    raise TaskError(
      f"task.name: needs the package {package}: pip install offpolicy-rl[{extra}] (here: "
      f"launch/install.sh .venv {extra})"
    )


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


def columns(settings: Any) -> Columns:
  """The columns that the section `task` names."""
  return Columns(
    settings.question_column,
    settings.answer_column,
    settings.demonstration_column,
    tests=verifiers.NAMED.get(settings.verifier, settings.verifier) == verifiers.NAMED["code"],
  )


def jsonl(path: str, columns: Columns, most: int) -> Listed:
  """Problems of a file with a question and an answer, a text or a number, in every row.

  The question may be a chat (`rows.chat`). `most`: see `listed`.
  """
  found = lambda: rows.read(pathlib.Path(path))
  return listed(
    lambda start: _problems(itertools.islice(found(), start, None), columns.problem), most
  )


def tfds(name: str, folder: pathlib.Path, split: str, columns: Columns, most: int) -> Listed:
  """Problems of a data set that TFDS prepared in a folder; as `jsonl`."""
  from offpolicy_rl.tasks import tfds as tfds_lib  # TensorFlow, only here

  size = tfds_splits(name, folder).get(split)

  def problems(start: int) -> Iterator[Problem | LeftOut]:
    start = start % size if size else start
    values = tfds_lib.read(name, str(folder), split, start)
    found = (
      rows.Row(f"tfds:{name}, {split} {i}", rows.Values(row)) for i, row in enumerate(values, start)
    )
    return _problems(found, columns.problem)

  return listed(problems, most, size)


def tfds_splits(name: str, folder: pathlib.Path) -> dict[str, int]:
  """Split -> number of rows of a data set that TFDS prepared; TaskError if it is not there."""
  from offpolicy_rl.tasks import tfds as tfds_lib  # TensorFlow, only here

  try:
    return tfds_lib.splits(name, str(folder))
  except Exception as error:  # of many kinds: another version, a wrong name, a damaged file
    raise TaskError(f"tfds:{name}: {folder}: {' '.join(str(error).split()):.300}") from None


def gsm8k(data_dir: str, split: str) -> Listed:
  """Grade-school word problems (arXiv 2110.14168): the answer is the number after ####.

  The demonstration is the worked solution without the calculator's annotations <<48/2=24>>.

  Args:
    split: "train" or "test"; read from its file if there is one, else as TFDS prepared it.
  """
  return list(_problems(_gsm8k_rows(data_dir, split), _gsm8k_problem))


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
  return list(_problems(rows.read(path), _math_problem))


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


def _problems(
  read: Iterable[rows.Row | LeftOut], make: Callable[[rows.Row], Problem]
) -> Iterator[Problem | LeftOut]:
  """The problems that `make` returns; a row for which it raises RowError is left out."""
  for row in read:
    try:
      yield row if isinstance(row, LeftOut) else make(row)
    except rows.RowError as error:
      yield LeftOut(row.where, str(error))


def _is_blank(value) -> bool:
  return value is None or (isinstance(value, str) and not value.strip())


def tfds_folder(data_dir: str) -> pathlib.Path:
  """The folder where TFDS keeps what it prepared; `data_dir`: "" = its default."""
  folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return pathlib.Path(folder).expanduser()


def _gsm8k_folder(data_dir: str) -> pathlib.Path:
  return tfds_folder(data_dir or os.environ.get("GSM8K_DIR", ""))


def split_file(folder: pathlib.Path, split: str) -> pathlib.Path:
  """SPLIT.jsonl, or another kind of file (`rows.read`) if only that is there."""
  suffixes = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
  paths = [folder / f"{split}{suffix}" for suffix in suffixes]
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
  if not gsm8k_has_files(data_dir):
    check_package("tensorflow_datasets", "tensorflow-datasets", extra="seqio")


def check_file(key: str, path: str | pathlib.Path) -> None:
  """Raises TaskError if there is no such file or folder, and none that the name matches."""
  found = pathlib.Path(path)
  if not str(path) or not (found.exists() or rows.matches(found)):
    there = nearby.files(pathlib.Path(path)) if str(path) else ""
    raise TaskError(
      f"{key}: got {str(path)!r}, expected a file of JSON lines or Parquet, a folder of such, or a "
      "pattern for their names"
      f"{there}"
    )
