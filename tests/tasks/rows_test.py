"""Data files as people have them: read, or refused with the file, the line and what to do."""

import bz2
import decimal
import gzip
import json
import lzma
import pathlib
import re

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.tasks import catalog, rows, sources
from tests.tasks.sources_test import settings

GOOD = [{"question": f"{i}+1=", "answer": str(i + 1)} for i in range(40)]
TEXT = "".join(json.dumps(row) + "\n" for row in GOOD)


def read(path: pathlib.Path) -> list:
  return [row.values if isinstance(row, rows.Row) else row for row in rows.read(path)]


def with_parquet(path: pathlib.Path, table: list[dict]) -> pathlib.Path:
  import pyarrow
  from pyarrow import parquet

  parquet.write_table(pyarrow.Table.from_pylist(table), path)
  return path


READ = {
  "plain": TEXT.encode(),
  "byte order mark": b"\xef\xbb\xbf" + TEXT.encode(),
  "gzip": gzip.compress(TEXT.encode()),
  "gzip in parts": gzip.compress(TEXT[:1000].encode()) + gzip.compress(TEXT[1000:].encode()),
  "gzip with a byte order mark": gzip.compress(b"\xef\xbb\xbf" + TEXT.encode()),
  "bzip2": bz2.compress(TEXT.encode()),
  "xz": lzma.compress(TEXT.encode()),
  "line ends of Windows": TEXT.replace("\n", "\r\n").encode(),
  "line ends of old Macs": TEXT.replace("\n", "\r").encode(),
  "blank lines": TEXT.replace("\n", "\n \n\n").encode(),
  "no line end at the end": TEXT.rstrip().encode(),
}


@pytest.mark.parametrize("form", READ)
def test_what_can_be_read_is_read_whatever_its_name(tmp_path, form):
  (tmp_path / "a.dat").write_bytes(READ[form])
  assert read(tmp_path / "a.dat") == GOOD


def test_parquet_is_read(tmp_path):
  path = with_parquet(tmp_path / "a.jsonl", [*GOOD, {"question": None, "answer": "1"}])
  *found, last = rows.read(path)
  assert [row.values for row in found] == GOOD and last.where == f"{path}:41"
  with pytest.raises(rows.RowError, match="question: got None, expected a text or a number"):
    rows.text(last.values, "question")


def test_jsonl_compressed_by_zstd_is_read(tmp_path):
  import pyarrow

  path, lines = tmp_path / "a.jsonl.zst", b"".join(json.dumps(row).encode() + b"\n" for row in GOOD)
  frames = (pyarrow.compress(part, "zstd", asbytes=True) for part in (lines[:5], lines[5:]))
  path.write_bytes(b"".join(frames))
  assert [dict(row.values) for row in rows.read(path)] == GOOD
  path.write_bytes(path.read_bytes()[:-3])
  with pytest.raises(
    rows.TaskError, match="a.jsonl.zst:[12]: can't be unpacked, the file is damag"
  ):
    list(rows.read(path))


def saved(folder: pathlib.Path, shards: list[list[dict]], **state) -> pathlib.Path:
  """What `datasets` leaves: Arrow streams, and their names in order."""
  import pyarrow

  folder.mkdir(parents=True)
  names = [f"data-{i:05}-of-{len(shards):05}.arrow" for i in range(len(shards))]
  for name, table in zip(names, map(pyarrow.Table.from_pylist, shards), strict=True):
    with pyarrow.ipc.new_stream(str(folder / name), table.schema) as stream:
      stream.write_table(table)
  files = [{"filename": name} for name in names]
  (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train"} | state))
  (folder / "dataset_info.json").write_text("{}")
  return folder


def test_what_datasets_saves_is_read(tmp_path):
  folder = saved(tmp_path / "set" / "train", [GOOD[:1], GOOD[1:]])
  found = list(rows.read(folder))
  assert [dict(row.values) for row in found] == GOOD
  assert found[-1].where == f"{folder}/data-00001-of-00002.arrow:{len(GOOD) - 1}"
  (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')
  with pytest.raises(rows.TaskError, match=r"set: got several splits, .*: \['train'\]"):
    list(rows.read(tmp_path / "set"))
  with pytest.raises(rows.TaskError, match="got _indices_data_files, expected none"):
    list(rows.read(saved(tmp_path / "chosen", [GOOD], _indices_data_files=[{"filename": "x"}])))
  (folder / "data-00001-of-00002.arrow").write_bytes(b"junk")
  with pytest.raises(rows.TaskError, match="00001-of-00002.arrow:1: can't be read as Arrow"):
    list(rows.read(folder))


def test_a_folder_of_parquet_shards_is_read_in_order(tmp_path):
  for i in (1, 0):
    with_parquet(tmp_path / f"train-0000{i}-of-00002.parquet", GOOD[i : i + 1])
  assert [dict(row.values) for row in rows.read(tmp_path)] == GOOD[:2]


def test_some_shards_of_a_table_may_be_empty(tmp_path):
  """As `datasets` writes them when there are more shards than rows left by a filter."""
  import pyarrow
  from pyarrow import parquet

  table = pyarrow.Table.from_pylist(GOOD[:1])
  for i in range(3):
    parquet.write_table(table.slice(0, int(i == 1)), tmp_path / f"train-0000{i}-of-00003.parquet")
  for path in (tmp_path, tmp_path / "train-*.parquet"):
    assert [row.values for row in rows.read(path)] == GOOD[:1]
  (tmp_path / "train-00001-of-00003.parquet").unlink()
  with pytest.raises(rows.TaskError, match="got no rows"):
    list(rows.read(tmp_path))
  for name, text in (("a.jsonl", "{}"), ("b.jsonl", "")):
    (tmp_path / name).write_text(text)
  with pytest.raises(rows.TaskError, match=r"b.jsonl: got no rows"):  # it may have been cut
    list(rows.read(tmp_path / "*.jsonl"))


def test_the_splits_of_a_folder_of_parquet_are_told_apart(tmp_path):
  """As repositories of data sets have them: reading all would train on the test set."""
  for split, row in zip(("train", "test"), GOOD, strict=False):
    with_parquet(tmp_path / f"{split}-00000-of-00001.parquet", [row])
  message = f"{tmp_path}: got the splits test, train, expected those of one: {tmp_path}/train-"
  with pytest.raises(rows.TaskError, match=message):
    list(rows.read(tmp_path))
  pattern = tmp_path / "train-*.parquet"
  sources.check_file("task.train_file", pattern)
  assert [dict(row.values) for row in rows.read(pattern)] == GOOD[:1]
  with pytest.raises(rows.TaskError, match="task.train_file: got .*; .* has t.*-00000-of-00001"):
    sources.check_file("task.train_file", tmp_path / "dev-*.parquet")


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


def test_a_chat_is_a_question(tmp_path):
  lines = [{"question": CHAT, "answer": 2}, {"question": CHAT[1:], "answer": 3}]
  for name in ("a.jsonl", "a.parquet"):
    if name == "a.jsonl":
      (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
    else:
      with_parquet(tmp_path / name, lines)
    found = [rows.chat(row.values, "question") for row in rows.read(tmp_path / name)]
    both = "system: Be brief.\nuser: 1+1?"
    assert found == [(both, tuple(CHAT)), ("1+1?", tuple(CHAT[1:]))]


@pytest.mark.parametrize(
  ("chat", "message"),
  [
    ([], "question: got no message at the end"),
    ([*CHAT, {"role": "assistant", "content": "2"}], "question: got 'assistant' at the end"),
    (["1+1?"], "question.0.: got '1.1.', expected an object with role and content"),
    ([{"role": "user", "content": [1]}], "question.0.: content: got .1., expected a text"),
    ([{"content": "1"}], "question.0.: role: got None, expected a text"),
  ],
)
def test_other_lists_are_no_chat(chat, message):
  with pytest.raises(rows.RowError, match=message):
    rows.chat(rows.Values(question=chat), "question")


def test_parquet_numbers_are_as_they_were_written(tmp_path):
  import pyarrow
  from pyarrow import parquet

  columns = {
    "half": pyarrow.array([5.5, None], pyarrow.float32()).cast(pyarrow.float16()),
    "single": pyarrow.array([0.1, None], pyarrow.float32()),
    "decimal": pyarrow.array([decimal.Decimal("5.50"), None]),
    "unsigned": pyarrow.array([2**63, None], pyarrow.uint64()),
    "dictionary": pyarrow.array(["a", None]).dictionary_encode(),
  }
  parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
  first, second = rows.read(tmp_path / "a.parquet")
  assert [rows.text(first.values, name) for name in columns] == [
    "5.5",
    "0.1",
    "5.50",
    str(2**63),
    "a",
  ]
  assert set(second.values.values()) == {None}


def test_a_column_that_is_there_twice_is_not_read(tmp_path):
  import pyarrow
  from pyarrow import parquet

  table = pyarrow.table([["q"], ["r"], ["1"]], names=["question", "question", "answer"])
  parquet.write_table(table, tmp_path / "a.parquet")
  [row] = rows.read(tmp_path / "a.parquet")
  assert rows.text(row.values, "answer") == "1"
  with pytest.raises(rows.RowError, match="question: there twice"):
    rows.text(row.values, "question")


@pytest.mark.parametrize("kind", ["timestamp", "duration"])
def test_parquet_that_python_has_no_values_for_is_refused_with_its_row(tmp_path, kind):
  import pyarrow
  from pyarrow import parquet

  of_kind = pyarrow.timestamp("us") if kind == "timestamp" else pyarrow.duration("s")
  table = pyarrow.table({"question": ["q"], "t": pyarrow.array([2**62], of_kind)})
  parquet.write_table(table, tmp_path / "a.parquet")
  with pytest.raises(rows.TaskError, match="a.parquet:1: can't be read as Parquet"):
    read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
  ("text", "why", "hint"),
  [
    (json.dumps(GOOD), "got an array, expected an object", "per line: jq -c '.[]' FILE"),
    (json.dumps(GOOD, indent=1), "no JSON: Expecting value", "per line: jq -c '.[]' FILE"),
    (json.dumps({"data": GOOD}, indent=1), "no JSON: Expecting", "per line: jq -c . FILE"),
    (TEXT.replace("\n", ""), "no JSON: Extra data at character 36", "per line: jq -c . FILE"),
    ("question,answer\n1+1=,2\n", "no JSON: ", "; CSV is not read, only JSON lines and Parquet"),
  ],
)
def test_files_of_other_forms_are_told_what_to_do(tmp_path, text, why, hint):
  (tmp_path / "a.jsonl").write_text(text)
  first = next(rows.read(tmp_path / "a.jsonl"))
  assert first.where.endswith(":1") and first.why.startswith(why) and first.why.endswith(hint)


def test_lines_are_counted_as_editors_do(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'\r\n{"a": "x\xe2\x80\xa8y"}\r\n\r\n{"a": 2}')
  found = list(rows.read(tmp_path / "a.jsonl"))
  assert [(row.where[-2:], row.values) for row in found] == [
    (":2", {"a": "x\u2028y"}),
    (":4", {"a": 2}),
  ]


REFUSED = {
  "latin-1": (
    TEXT.encode() + '{"question": "café"}'.encode("latin-1"),
    ":41: got the byte 0xe9, which is no UTF-8, at character 18; convert the file",
  ),
  "latin-1 in gzip": (
    gzip.compress('{"question": "café"}'.encode("latin-1")),
    ":1: got the byte 0xe9, which is no UTF-8, at character 18",
  ),
  "UTF-16": (TEXT.encode("utf-16"), ":1: got UTF-16, expected JSON lines in UTF-8; convert it"),
  "UTF-32": (TEXT.encode("utf-32"), ":1: got UTF-32, expected JSON lines in UTF-8; convert it"),
  "UTF-16 without mark": (TEXT.encode("utf-16-le"), ":1: got UTF-16 or binary"),
  "UTF-16 in gzip": (gzip.compress(TEXT.encode("utf-16")), ":1: got UTF-16, expected JSON"),
  "zip": (b"PK\x03\x04" + bytes(100), ":1: got a zip archive, expected .*; unpack it"),
  "half a zstd": (b"\x28\xb5\x2f\xfd" + bytes(100), ":1: can't be unpacked, the file is damaged"),
  "gzip twice": (gzip.compress(gzip.compress(TEXT.encode())), ":1: got a compressed file in a co"),
  "half a gzip": (gzip.compress(TEXT.encode())[:-40], r":\d+: can't be unpacked, the file is dam"),
  "gzip with a wrong sum": (gzip.compress(TEXT.encode())[:-8] + bytes(8), ":.*can't be unpacked"),
  "half a parquet": (b"PAR1" + bytes(100), ":1: can't be read as Parquet"),
  "nothing": (b"", ": got no rows, expected one JSON object per line"),
  "blank": (b"\n \r\n\n", ": got no rows"),
  "only a byte order mark": (b"\xef\xbb\xbf", ": got no rows"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_a_file_that_cant_be_read_is_refused_with_its_line_and_what_to_do(tmp_path, form):
  data, message = REFUSED[form]
  (tmp_path / "a.jsonl").write_bytes(data)
  with pytest.raises(rows.TaskError, match=f"{tmp_path}/a.jsonl({message})"):
    read(tmp_path / "a.jsonl")


def test_no_file(tmp_path):
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  folder = "a folder without state.json"
  for name, message in (("", folder), ("x", "No such file"), ("loop", "symbolic links")):
    with pytest.raises(rows.TaskError, match=f"{tmp_path / name}: can't be read: .*{message}"):
      read(tmp_path / name)


def test_a_line_without_an_end_is_not_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(rows, "_LONGEST_LINE", 1000)
  (tmp_path / "a.jsonl").write_text("\n" + "x" * 5000)
  with pytest.raises(rows.TaskError, match="a.jsonl:2: got a line of"):
    read(tmp_path / "a.jsonl")


LEFT_OUT = {
  '{"question": "q"': "no JSON: ",
  '[{"question": "q", "answer": "1"}]': "got an array, expected an object",
  '{"question": "q", "answer": "1", "meta": ' + "[" * 99999 + "]" * 99999 + "}": "nested too dee",
  '{"question": "a \\ud83d", "answer": "1"}': r"question: got half of a surrogate pair, '\ud83d'",
  '{"question": "q", "answer": "\\udc00"}': "answer: got half of a surrogate pair",
  '{"question": "q", "answer": NaN}': "answer: got nan, expected",
  '{"question": "q", "answer": -Infinity}': "answer: got -inf, expected",
  '{"question": "q", "answer": 1e999}': "answer: got inf, expected",
  '{"question": "q", "answer": ' + "9" * 5000 + "}": "no JSON: Exceeds the limit",
  '{"question": "q", "answer": null}': "answer: got None, expected",
  '{"question": "q", "answer": {"value": 5}}': "answer: got {'value': 5}, expected",
  '{"question": "q", "answer": ["5"]}': "answer: got ['5'], expected",
  '{"question": "q", "answer": ""}': "answer: got '', expected a text that is not blank",
  '{"question": "", "answer": "1"}': "question: got '', expected a text that is not blank",
  '{"question": " \\n\\u00a0", "answer": "1"}': "expected a text that is not blank",
  '{"question": "q", "answer": "1", "answer": "2"}': "answer: there twice, expected once",
}


@pytest.mark.parametrize("line", LEFT_OUT, ids=[line[:60] for line in LEFT_OUT])
def test_a_bad_row_is_left_out_up_to_a_share(tiny_config, tmp_path, line):
  path = tmp_path / "a.jsonl"
  path.write_text(TEXT + line + "\n")
  asked = settings(tiny_config, name="jsonl", train_file=str(path), max_bad_rows=1 / 41)
  [reading] = catalog.select(asked).read("train")
  [(where, why)] = reading.left_out
  assert where == f"{path}:41" and LEFT_OUT[line] in why
  asked.max_bad_rows = 0.02
  with pytest.raises(config_lib.ConfigError, match=rf"{path}:41: .*\(1 of 41 rows can't be used; "):
    config_lib.check_data(tiny_config)


def test_a_key_that_nobody_reads_may_be_there_twice(tiny_config, tmp_path):
  (tmp_path / "a.jsonl").write_text(TEXT.replace('"answer"', '"x": 1, "x": 2, "answer"'))
  asked = settings(tiny_config, name="jsonl", train_file=str(tmp_path / "a.jsonl"))
  assert sum(len(catalog.select(asked).split(split)[0]) for split in ("train", "heldout")) == 40


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (72.0, "72"),
    (-0.0, "0"),
    (0.1, "0.1"),
    (1e22, "1e+22"),
    (12345678901234567890, None),
    (5, "5"),
  ],
)
def test_a_table_with_a_missing_value_makes_floats_of_integers(value, text):
  assert rows.text(rows.Values(a=value), "a") == (text or str(value))


def test_one_row_is_too_few_unless_others_are_held_out(tiny_config, tmp_path):
  path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
  path.write_text(TEXT.splitlines()[0])
  asked = settings(tiny_config, name="jsonl", train_file=str(path))
  with pytest.raises(
    config_lib.ConfigError, match=rf"none of its 1 problems \(the first is {path}:1"
  ):
    config_lib.check_data(tiny_config)
  other.write_text(TEXT.splitlines()[1])
  asked.heldout_file = str(other)
  config_lib.check_data(tiny_config)
  asked.heldout_file = str(path)  # which leaves nothing to train on
  with pytest.raises(config_lib.ConfigError, match="is to train on, expected at least one"):
    config_lib.check_data(tiny_config)


def math(tmp_path, tiny_config, *lines, **changes):
  (tmp_path / "test.jsonl").write_text('{"problem": "t", "answer": "1"}')
  (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
  asked = settings(tiny_config, name="math", data_dir=str(tmp_path), **changes)
  return catalog.select(asked).read("train")[0]


def test_one_bad_row_does_not_refuse_all_of_math(tiny_config, tmp_path):
  good = [{"problem": f"p{i}", "solution": rf"\boxed{{{i}}}"} for i in range(200)]
  found = math(tmp_path, tiny_config, *good[:50], {"problem": "p", "answer": ["5"]}, *good[50:])
  assert len(found.problems) == 200
  assert found.left_out == [
    (f"{tmp_path}/train.jsonl:51", "answer: got ['5'], expected a text or a number")
  ]


@pytest.mark.parametrize(
  "row",
  [
    {"answer": ["5"]},
    {"answer": {"value": 5}},
    {"answer": True},
    {"answer": float("nan")},
    {"answer": None},
    {"answer": " "},
    {"answer": "5", "solution": ["so"]},
    {"solution": None},
    {"solution": r"\boxed{}"},
    {"solution": r"\boxed{5"},
  ],
)
def test_what_is_no_text_becomes_none_in_math(tiny_config, tmp_path, row):
  good = {"problem": "good", "answer": "1"}
  found = math(tmp_path, tiny_config, {"problem": "p"} | row, good, max_bad_rows=0.5)
  assert [p.question for p in found.problems] == ["good"] and len(found.left_out) == 1


@pytest.mark.parametrize(
  ("row", "answer", "shown"),
  [
    ({"answer": "5", "solution": None}, "5", r"\boxed{5}"),
    ({"answer": " ", "solution": r"\boxed{6}"}, "6", r"\boxed{6}"),
    ({"answer": 7.0}, "7", r"\boxed{7}"),
    ({"solution": r"\boxed{12} and \boxed{18}."}, "12, 18", r"\boxed{12} and \boxed{18}."),
  ],
)
def test_math_rows(tiny_config, tmp_path, row, answer, shown):
  [problem] = math(tmp_path, tiny_config, {"problem": "p"} | row).problems
  assert (json.loads(problem.answer), problem.demonstration) == (answer, shown)


def test_splits_may_be_compressed_or_parquet(tiny_config, tmp_path):
  solved = [{"question": f"q{i}", "answer": f"so\n#### {i}"} for i in range(5)]
  text = "".join(json.dumps(row) + "\n" for row in solved)
  (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(text.encode()))
  with_parquet(tmp_path / "test.parquet", solved[:2])
  settings(tiny_config, name="gsm8k", data_dir=str(tmp_path))
  asked = config_lib.check_data(tiny_config)
  [train], [heldout] = asked.split("train"), asked.split("heldout")
  assert [[json.loads(p.answer) for p in part] for part in (train, heldout)] == [
    ["2", "3", "4"],
    ["0", "1"],
  ]


def test_problems_of_ones_own_are_looked_at_too(tiny_config):
  bad = [("", '"1"'), ("a\ud83d", '"1"'), ("q", "1]"), ("q", None), ("q", '"1"')]
  listed = [sources.Problem(question, answer, "1") for question, answer in bad]
  task = catalog.Task("own", lambda: listed, "m:f", max_bad_rows=0.9, heldout=lambda: [])
  found = task.read("train")
  assert [problem.where for problem in found.problems] == ["own, problem 4"]
  assert [re.sub(":.*", "", why) for _, why in found.left_out] == ["question"] * 2 + ["answer"] * 2
