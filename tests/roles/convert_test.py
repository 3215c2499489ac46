"""`offpolicy-rl import`: what it takes along, what it refuses, and that nothing half is left."""

import json
import os

import jax
import pytest
from etils.epath import gpath, testing

from configs import base
from offpolicy_rl import config as config_lib
from offpolicy_rl import files as files_lib
from offpolicy_rl.cli import main
from offpolicy_rl.model import decoder, families, policy, pretrained
from offpolicy_rl.roles import build, build_learner, convert, run_directory
from offpolicy_rl.tasks import tokenizer
from tests.model.families_test import LLAMA
from tests.tasks.tokenizer_test import Gguf


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A small checkpoint, made here."""
  folder = tmp_path_factory.mktemp("published")
  keys = LLAMA | {"vocab_size": 264}
  (folder / pretrained.CONFIG).write_text(json.dumps(keys))
  config: decoder.DecoderConfig = families.read(keys)
  params = policy.init(config, jax.random.key(0))
  names = pretrained.tensor_shapes(config)
  pretrained.save(folder, config, params, dict.fromkeys(names, "bfloat16"))
  tokenizer.write_from_gguf(Gguf(), folder)
  (folder / "README.md").write_text("not taken")
  return folder


def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_good_checkpoint_is_taken_as_it_is(published, tmp_path, capsys):
  to = tmp_path / "deep" / "down"
  assert main.main(["import", f"--from={published}", f"--to={to}"]) == 0
  assert "llama, 0.1 M parameters (bfloat16), 261 tokens" in capsys.readouterr().out
  expected = files(published)
  del expected["README.md"]
  assert files(to) == expected
  assert main.main(["import", f"--from={published}", f"--to={to}"]) == 1
  assert "exists, expected a new directory" in capsys.readouterr().err


def test_it_says_what_ends_a_completion_and_what_is_not_followed(published, tmp_path):
  source = copied(published, tmp_path)
  said = {"temperature": 0.7, "top_k": 0, "repetition_penalty": 1.1, "num_beams": 4}
  generation = json.dumps({"eos_token_id": [0, 1]} | said)
  (source / "generation_config.json").write_text(generation)
  lines = convert.import_checkpoint(str(source), str(tmp_path / "to")).splitlines()
  assert lines[1:] == [
    "  a completion ends with '<|im_end|>' (1), '<|im_start|>' (0)",
    "  generation_config.json: temperature = 0.7, repetition_penalty = 1.1, num_beams = 4: not "
    "followed, sampler.* say how to sample",
  ]
  ending = "{% for m in messages %}{{ m.content }}<|im_start|>{% endfor %}"
  (source / "chat_template.jinja").write_text(ending)
  (source / "generation_config.json").unlink()
  (source / "additional_chat_templates").mkdir()
  (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
  to = tmp_path / "again"
  lines = convert.import_checkpoint(str(source), str(to)).splitlines()
  assert lines[2:] == [
    "  the chat template ends a turn with '<|im_start|>', but no file says that it ends a "
    "completion: see sampler.stop"
  ]
  assert json.loads(tokenizer.read_files(to).more_chat_templates) == {"tool_use": "{{ tools }}"}
  (source / "chat_template.jinja").unlink()
  (source / "additional_chat_templates" / "tool_use.jinja").unlink()
  lines = convert.import_checkpoint(str(source), str(tmp_path / "base")).splitlines()
  assert lines[2:] == ["  no chat template: set task.chat=False"]


def test_a_template_that_does_not_come_to_an_end_is_refused(published, tmp_path, monkeypatch):
  source = copied(published, tmp_path)
  loops = "{% for x in range(9999) %}{% for y in range(999) %}{% endfor %}{% endfor %}"
  (source / "chat_template.jinja").write_text(loops)
  monkeypatch.setattr(convert, "_TEMPLATE_SECONDS", 0.05)
  with pytest.raises(
    tokenizer.TokenizerError, match=r"rendering one question takes more than 0.05 s"
  ):
    convert.import_checkpoint(str(source), str(tmp_path / "to"))
  assert [path.name for path in tmp_path.iterdir()] == ["source"]


def copied(published, tmp_path):
  source = tmp_path / "source"
  source.mkdir()
  for name, data in files(published).items():
    (source / name).write_bytes(data)
  return source


def test_a_bucket_is_read(published, tmp_path, monkeypatch):
  """`gs://somewhere` stands for a local directory; real storage is etils' business."""
  monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)  # else past what is replaced here
  local, bucket = str(published), "gs://somewhere"
  with testing.mock_epath(
    isdir=lambda real, path: real(str(path).replace(bucket, local)),
    listdir=lambda real, path: real(str(path).replace(bucket, local)),
    copy=lambda real, path, to, **how: real(str(path).replace(bucket, local), to, **how),
  ):
    convert.import_checkpoint(bucket, str(tmp_path / "to"))
    with pytest.raises(pretrained.PretrainedError, match="gs://somewhere/else is no directory"):
      convert.import_checkpoint(f"{bucket}/else", str(tmp_path / "again"))
  assert files(tmp_path / "to").keys() == files(published).keys() - {"README.md"}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda d: (d / "config.json").write_text(json.dumps(LLAMA | {"mup": 1})), "--ignore"),
    (lambda d: (d / "model.safetensors").unlink(), "missing"),
    (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    (
      lambda d: (d / "chat_template.jinja").write_text("fine\n{% tools %}"),
      "chat_template.jinja: line 2: Encountered unknown tag 'tools'",
    ),
    (
      lambda d: (d / "chat_template.jinja").write_text("fine\n\n{{ messages[2].content }}"),
      "chat_template.jinja: line 3: list object has no element 2",
    ),
    (
      lambda d: (d / "generation_config.json").write_text('{"eos_token_id": [1, 999]}'),
      "generation_config.json: eos_token_id 999 is no token",
    ),
    (lambda d: (d / "special_tokens_map.json").write_bytes(b"\xff"), "no UTF-8 text"),
    (
      lambda d: (d / "config.json").write_text(json.dumps(LLAMA | {"vocab_size": 100})),
      r"embed_tokens.weight: got BF16 \[264, 64\], expected \[100, 64\]",
    ),
  ],
)
def test_a_bad_one_is_refused_and_nothing_is_left(published, tmp_path, change, message):
  source = copied(published, tmp_path)
  change(source)
  with pytest.raises(ValueError, match=message):
    convert.import_checkpoint(str(source), str(tmp_path / "to"))
  assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_errors_name_the_directory_that_is_read(published, tmp_path):
  source = copied(published, tmp_path)
  (source / "tokenizer.json").unlink()
  with pytest.raises(tokenizer.TokenizerError, match=f"^{source}/tokenizer.json: no such file"):
    convert.import_checkpoint(f"{source}/", str(tmp_path / "to"))
  (source / "config.json").write_text("{")
  with pytest.raises(pretrained.PretrainedError, match=f"^{source}/config.json: no JSON"):
    convert.import_checkpoint(str(source), str(tmp_path / "to"))


def test_directories_with_names_of_files_are_left_behind(published, tmp_path):
  source = copied(published, tmp_path)
  for name in ("tokenizer", "chat_templates"):
    (source / name).mkdir()
  convert.import_checkpoint(str(source), str(tmp_path / "to"))
  assert files(tmp_path / "to").keys() == files(published).keys() - {"README.md"}


def test_a_harmless_key_can_be_named_once_and_for_all(published, tmp_path):
  source = copied(published, tmp_path)
  keys = LLAMA | {"vocab_size": 264, "mup": 1}
  (source / "config.json").write_text(json.dumps(keys))
  convert.import_checkpoint(str(source), str(tmp_path / "to"), ignore=["mup"])
  assert pretrained.Checkpoint(tmp_path / "to").keys["mup"] == 1
  config = card()
  config.model.checkpoint = str(tmp_path / "to")
  small = build.model_files(config, tmp_path, resume=False)
  assert build.make_policy(config, small).model.vocab_size == 264


def card():
  config = base.get_config()
  config.mesh.tensor = 1
  return config


def test_a_new_run_takes_its_own_small_files_and_a_resumed_one_keeps_them(published, tmp_path):
  config = card()
  config.model.checkpoint = str(published)
  stale = tmp_path / "model"  # of a run that died before its first checkpoint
  stale.mkdir()
  (stale / "config.json").write_text("{}")
  files = build.model_files(config, tmp_path, resume=False)
  assert files == tokenizer.read_files(published)
  config.model.checkpoint = str(tmp_path / "gone")
  assert build.model_files(config, tmp_path, resume=True) == files
  with pytest.raises(tokenizer.TokenizerError, match="no such file"):
    build.model_files(config, tmp_path, resume=False)
  assert tokenizer.read_files(stale) == files  # nothing was lost


def test_a_failed_export_leaves_nothing(published, tmp_path, monkeypatch):
  run = tmp_path / "run"
  run.mkdir()
  config = card()
  config.model.checkpoint = str(published)
  build.model_files(config, run, resume=False)
  (run / "config.json").write_text(config_lib.to_json(config))
  monkeypatch.setattr(
    build_learner, "newest_params", lambda _, model: (7, policy.init(model, jax.random.key(1)))
  )
  real = pretrained.save

  def fails_at_the_end(*arguments):
    real(*arguments)
    raise OSError("disk full")

  monkeypatch.setattr(pretrained, "save", fails_at_the_end)
  with pytest.raises(OSError, match="disk full"):
    convert.export_checkpoint(str(run), str(tmp_path / "out"))
  assert [path.name for path in tmp_path.iterdir()] == ["run"]
  monkeypatch.setattr(pretrained, "save", real)
  convert.export_checkpoint(str(run), str(tmp_path / "out"))
  assert files(tmp_path / "out").keys() == files(published).keys() - {"README.md"}


@pytest.mark.parametrize("said", [{"torch_dtype"}, {"dtype"}, {"dtype", "torch_dtype"}, set()])
def test_an_export_says_its_dtype_wherever_the_file_does(published, tmp_path, monkeypatch, said):
  run = tmp_path / "run"
  run.mkdir()
  config = card()
  config.model.checkpoint = str(published)
  build.model_files(config, run, resume=False)
  keys = LLAMA | {"vocab_size": 264} | dict.fromkeys(said, "bfloat16")
  keys = {key: value for key, value in keys.items() if "dtype" not in key or key in said}
  (run / "model" / pretrained.CONFIG).write_text(json.dumps(keys))
  (run / "config.json").write_text(config_lib.to_json(config))
  monkeypatch.setattr(
    build_learner, "newest_params", lambda _, model: (7, policy.init(model, jax.random.key(1)))
  )
  convert.export_checkpoint(str(run), str(tmp_path / "out"), dtype="float16")
  found = json.loads((tmp_path / "out" / pretrained.CONFIG).read_text())
  assert found == keys | dict.fromkeys(said or {"dtype"}, "float16")


def test_no_directory_is_said(tmp_path):
  with pytest.raises(pretrained.PretrainedError, match="no directory and no .gguf file"):
    convert.import_checkpoint(str(tmp_path / "nowhere"), str(tmp_path / "to"))


def test_a_link_is_made_once_and_never_over_something(tmp_path):
  name, target = tmp_path / "run" / "checkpoints", tmp_path / "shared"
  for _ in range(2):
    run_directory.link(name, target, empty=True)
    (target / "file").write_text("")
  assert (name / "file").exists()
  with pytest.raises(FileExistsError, match="has files of another run"):
    run_directory.link(tmp_path / "other", target, empty=True)
  with pytest.raises(FileExistsError, match="expected no such file or a link"):
    run_directory.link(tmp_path / "shared", tmp_path / "elsewhere", empty=False)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_a_whole_directory_is_as_open_as_the_umask_says(tmp_path, mask, mode):
  before = os.umask(mask)
  try:
    with files_lib.new_directory(tmp_path / "made"):
      pass
  finally:
    os.umask(before)
  assert (tmp_path / "made").stat().st_mode & 0o777 == mode
