"""Published checkpoints: `import` checks and copies or converts them, `export` writes them."""

import concurrent.futures
import glob
import json
import math
import pathlib
import shutil
import threading
from collections.abc import Callable, Collection

import safetensors.numpy
from etils import epath

from offpolicy_rl import config as config_lib
from offpolicy_rl import files as files_lib
from offpolicy_rl.model import families, gguf_files, lora, pretrained
from offpolicy_rl.roles import build, build_learner
from offpolicy_rl.tasks import tokenizer

_TEMPLATE_SECONDS = 20.0  # timeout of a chat template, which usually takes milliseconds


def import_checkpoint(source: str, to: str, *, ignore: Collection[str] = ()) -> str:
  """Checks a published checkpoint and copies it to the directory `to`; returns a summary.

  Args:
    source: a directory (local or in a bucket) with config.json, *.safetensors and tokenizer files,
      or a GGUF file.
    ignore: keys of config.json that have no effect on the model.

  Raises:
    FileExistsError: `to` exists.
    families.UnsupportedModel, pretrained.PretrainedError, gguf_files.GgufError,
      tokenizer.TokenizerError: it can't be used; nothing is left behind.
  """
  target = pathlib.Path(to)
  if target.exists():
    raise FileExistsError(f"--to: {to} exists, expected a new directory")
  with files_lib.new_directory(target) as folder:
    if source.endswith(".gguf"):
      _convert(pathlib.Path(source), folder)
    else:
      _copy(epath.Path(source), folder)
    if ignore:  # for every later reader
      path = folder / pretrained.CONFIG
      keys = families.parse(path.read_text(encoding="utf-8"))
      path.write_text(
        json.dumps(keys | {families.IGNORED: sorted(ignore)}, indent=2) + "\n", encoding="utf-8"
      )
    try:
      summary = _check(folder)
    except ValueError as error:  # which names the temporary directory
      raise type(error)(str(error).replace(str(folder), source.rstrip("/"))) from None
  return f"{target}: {summary}"


def _copy(source: epath.Path, to: pathlib.Path) -> None:
  if not source.is_dir():
    raise pretrained.PretrainedError(
      f"--from: {source} is no directory and no .gguf file; `hf download NAME --local-dir DIR` "
      "gets a published checkpoint"
    )
  weights = pretrained.weight_files(source)
  index = [] if weights == [pretrained.SINGLE] else [pretrained.INDEX]
  names = map(glob.escape, [pretrained.CONFIG, *index, *weights])
  files_lib.copy_matching(source, to, (*names, *pretrained.COMPANIONS))


def _convert(source: pathlib.Path, to: pathlib.Path) -> None:
  file = gguf_files.GgufFile(source)
  keys = file.config_json()
  families.read(keys)  # raises before anything is converted
  (to / pretrained.CONFIG).write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")
  safetensors.numpy.save_file(dict(file.tensors()), to / pretrained.SINGLE, {"format": "pt"})
  tokenizer.write_from_gguf(file, to)


def _check(folder: pathlib.Path) -> str:
  checkpoint = pretrained.Checkpoint(folder)
  files = tokenizer.read_files(folder)
  words = tokenizer.Tokenizer(files, vocab_size=checkpoint.config.vocab_size)
  count = sum(math.prod(shape) for shape in checkpoint.shapes.values())
  dtypes = ", ".join(sorted(set(checkpoint.dtypes.values())))
  family = checkpoint.keys["model_type"]
  notes = [*_with_timeout(words.check), *tokenizer.notes(files)]
  line = f"{family}, {count / 1e6:,.1f} M parameters ({dtypes}), {words.size:,} tokens"
  return "\n  ".join([line, *notes])


def _with_timeout(check: Callable[[], list[str]]) -> list[str]:
  """Calls `check`, which runs a template's code; TokenizerError if it takes too long."""
  result: concurrent.futures.Future = concurrent.futures.Future()

  def run() -> None:
    try:
      result.set_result(check())
    except Exception as error:
      result.set_exception(error)

  threading.Thread(target=run, daemon=True, name="template").start()  # can't be stopped
  try:
    return result.result(timeout=_TEMPLATE_SECONDS)
  except TimeoutError:
    raise tokenizer.TokenizerError(
      f"{tokenizer.TEMPLATE}: rendering one question takes more than {_TEMPLATE_SECONDS:g} s"
    ) from None


def export_checkpoint(run_dir: str, to: str, *, dtype: str | None = None) -> str:
  """Writes the policy of a run's newest checkpoint as a published one; returns a summary.

  Adapters are merged into the weights.

  Args:
    dtype: of the tensors, e.g. "bfloat16"; None = that of the imported checkpoint.

  Raises:
    FileExistsError: `to` exists.
    pretrained.PretrainedError: the run did not begin with a published checkpoint, or has none.
  """
  run, target = pathlib.Path(run_dir), pathlib.Path(to)
  if target.exists():
    raise FileExistsError(f"--to: {to} exists, expected a new directory")
  if not (run / "model").is_dir():
    raise pretrained.PretrainedError(
      f"--run_dir: {run}/model is missing: only runs that began with a published checkpoint "
      "(model.checkpoint) can be exported as one"
    )
  files = tokenizer.read_files(run / "model")
  keys = families.parse(files.config)
  settings = config_lib.of_run(run)
  config_lib.validate(settings)
  model = build.make_policy(settings, files).model
  step, params = build_learner.newest_params(run, model)
  config = lora.base_config(model)
  dtype = dtype or keys.get("dtype") or keys.get("torch_dtype") or "float32"
  names = pretrained.tensor_shapes(config)
  with files_lib.new_directory(target) as folder:
    pretrained.save(folder, config, params, dict.fromkeys(names, dtype))
    shutil.copytree(run / "model", folder, dirs_exist_ok=True)
    present = [name for name in ("dtype", "torch_dtype") if name in keys] or ["dtype"]
    keys |= dict.fromkeys(present, dtype)  # transformers 5 or 4, or both
    (folder / pretrained.CONFIG).write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")
  return f"{target}: step {step} of {run}, {len(names)} tensors, {dtype}"
