"""Errors about a missing file say what is there instead."""

import pathlib

from offpolicy_rl.system import nearby


def test_similar_names_come_first_and_directories_have_a_slash(tmp_path):
  for name in ("alpha", "beta", "Qwen3-0.6B", "train.jsonl", ".hidden", *map(str, range(5))):
    (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
  assert nearby.files(tmp_path / "trian.jsonl") == (
    f"; {tmp_path} has train.jsonl, 0/, 1/, 2/, 3/, 4/ and 3 more"
  )
  assert nearby.files(tmp_path / "Qwen3" / "config.json").startswith(
    f"; {tmp_path} has Qwen3-0.6B,"
  )
  assert nearby.files(tmp_path / "alpha" / "x") == f"; {tmp_path}/alpha has no files"


def test_a_relative_path_is_of_this_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "data.jsonl").touch()
  assert nearby.files(pathlib.Path("dat.jsonl")) == "; this directory has data.jsonl"
