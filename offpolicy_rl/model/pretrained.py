"""Published checkpoints: config.json and *.safetensors <-> the decoder's parameters.

No host ever holds a full model: each device reads its part of each parameter from the mapped files,
and an export goes layer by layer. PyTorch is not needed.
"""

import fnmatch
import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from numpy.typing import DTypeLike

from offpolicy_rl.model import config_reader, families, policy
from offpolicy_rl.model.decoder import DecoderConfig

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
_ADAPTER = "adapter_config.json"  # of the package peft
_HINTS = {  # files that may be there instead of weights
  "*.bin": "*.bin files are not read",
  "*.gguf": "--from=FILE.gguf reads a GGUF file",
  "snapshots": "the directories in snapshots/ may have them",
}
_SHARD_BYTES = 4 << 30
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Files of a checkpoint that are copied along with config.json and the weights.
COMPANIONS = (
  "generation_config.json",
  "tokenizer*",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template*",
  "additional_chat_templates/*.jinja",
  "LICENSE*",
)
_UNUSED = ("rotary_emb.inv_freq",)  # buffers that old checkpoints carry


class PretrainedError(ValueError):
  """A checkpoint that can't be read; names the file or tensor and what was expected."""


class _Place(NamedTuple):
  """The place of a parameter in a published checkpoint.

  `axes[i]`: the axes of ours, without the stacked ones, that make up axis i of theirs, slowest
  first.
  """

  name: str  # with {layer}, perhaps {expert} in it when ours is stacked
  axes: tuple[tuple[int, ...], ...]

  @property
  def stacked(self) -> int:
    return self.name.count("{")  # leading axes of ours that stack tensors of theirs

  def names(self, indices: Sequence[Iterable[int]]) -> list[str]:
    every = itertools.product(*indices)
    return [self.name.format(**dict(zip(("layer", "expert"), at, strict=False))) for at in every]


_VECTOR, _MATRIX, _TRANSPOSED = ((0,),), ((0,), (1,)), ((1,), (0,))
_PER_HEAD = ((1, 2), (0,))  # theirs [(heads, channels), width]
_ATTENTION = "model.layers.{layer}.self_attn."
_MLP = "model.layers.{layer}.mlp."
_EXPERT = _MLP + "experts.{expert}."
_PLACES = {
  "embedding": _Place("model.embed_tokens.weight", _MATRIX),
  "unembedding": _Place("lm_head.weight", _TRANSPOSED),
  "final_norm": _Place("model.norm.weight", _VECTOR),
  "blocks/attention_norm": _Place("model.layers.{layer}.input_layernorm.weight", _VECTOR),
  **{f"blocks/w_{x}": _Place(f"{_ATTENTION}{x}_proj.weight", _PER_HEAD) for x in "qkv"},
  **{f"blocks/b_{x}": _Place(f"{_ATTENTION}{x}_proj.bias", ((0, 1),)) for x in "qkv"},
  "blocks/q_norm": _Place(_ATTENTION + "q_norm.weight", _VECTOR),
  "blocks/k_norm": _Place(_ATTENTION + "k_norm.weight", _VECTOR),
  "blocks/w_o": _Place(_ATTENTION + "o_proj.weight", ((2,), (0, 1))),
  "blocks/w_gate": _Place(_MLP + "gate_proj.weight", _TRANSPOSED),
  "blocks/w_up": _Place(_MLP + "up_proj.weight", _TRANSPOSED),
  "blocks/w_down": _Place(_MLP + "down_proj.weight", _TRANSPOSED),
  "blocks/router": _Place(_MLP + "gate.weight", _TRANSPOSED),
  "blocks/experts_gate": _Place(_EXPERT + "gate_proj.weight", _TRANSPOSED),
  "blocks/experts_up": _Place(_EXPERT + "up_proj.weight", _TRANSPOSED),
  "blocks/experts_down": _Place(_EXPERT + "down_proj.weight", _TRANSPOSED),
  "blocks/mlp_norm": _Place("model.layers.{layer}.post_attention_layernorm.weight", _VECTOR),
}
_INPUT, _OUTPUT = _PLACES["embedding"].name, _PLACES["unembedding"].name
_COMPARED = 1 << 24  # values at once
_POST_NORM_PLACES = {  # where there are norms on both sides
  "blocks/post_attention_norm": _PLACES["blocks/mlp_norm"],
  "blocks/mlp_norm": _Place("model.layers.{layer}.pre_feedforward_layernorm.weight", _VECTOR),
  "blocks/post_mlp_norm": _Place("model.layers.{layer}.post_feedforward_layernorm.weight", _VECTOR),
}


def _places(config: DecoderConfig) -> dict[str, tuple[_Place, tuple[int, ...]]]:
  """Path of every parameter -> its place and our shape, layers in front."""
  shapes = policy.flatten(policy.shapes(config))
  places = _PLACES | (_POST_NORM_PLACES if config.post_norms else {})
  return {path: (places[path], array.shape) for path, array in shapes.items()}


def _their_shape(place: _Place, shape: tuple[int, ...]) -> tuple[int, ...]:  # of one tensor
  return tuple(math.prod(shape[i] for i in group) for group in place.axes)


def _their_index(place: _Place, index: tuple[slice, ...], shape) -> tuple[slice, ...]:
  """Our slices without stacked axes -> theirs. Only the slowest of joined axes may be cut."""
  slices = []
  for group in place.axes:
    first, rest = group[0], math.prod(shape[i] for i in group[1:])
    start, stop, _ = index[first].indices(shape[first])
    assert all(index[i].indices(shape[i])[:2] == (0, shape[i]) for i in group[1:]), index
    slices.append(slice(start * rest, stop * rest))
  return tuple(slices)


def _to_ours(place: _Place, theirs: np.ndarray, index, shape) -> np.ndarray:
  order = [axis for group in place.axes for axis in group]
  sizes = [len(range(*index[axis].indices(shape[axis]))) for axis in order]
  return theirs.reshape(sizes).transpose(np.argsort(order))


def _to_theirs(place: _Place, ours: np.ndarray) -> np.ndarray:
  order = [axis for group in place.axes for axis in group]
  return np.ascontiguousarray(ours.transpose(order).reshape(_their_shape(place, ours.shape)))


class Checkpoint:
  """An opened checkpoint directory: its architecture, and its tensors by slices."""

  def __init__(self, directory: pathlib.Path):
    """Reads the headers of all files and checks every name, shape and dtype.

    Raises:
      PretrainedError: a tensor or file is missing, unexpected, or of another shape or dtype.
      families.UnsupportedModel: the decoder does not compute this architecture.
    """
    self.directory = pathlib.Path(directory)
    self.keys = _read_json(self.directory / CONFIG)
    self.config = families.read(self.keys)
    self._slices = self._open()
    if self.config.tied_embeddings and _INPUT not in self._slices and _OUTPUT in self._slices:
      self._slices[_INPUT] = self._slices.pop(_OUTPUT)  # a file may keep either name of one matrix
    self.shapes = tensor_shapes(self.config)  # their name -> shape
    self.dtypes = self._check()

  def _open(self) -> dict:
    """Tensor name -> its values in a file, to be read by slices."""
    slices, file_names = {}, {}
    for file_name in weight_files(self.directory):
      path = self.directory / file_name
      try:
        file = safetensors.safe_open(path, "np")
      except (safetensors.SafetensorError, OSError, ValueError) as error:
        pointer = "; it is a pointer of Git LFS, `git lfs pull` gets the file" * _is_pointer(path)
        raise PretrainedError(f"{path}: no complete safetensors file: {error}{pointer}") from None
      for name in file.keys():  # noqa: SIM118
        if name in slices:
          raise PretrainedError(
            f"{self.directory}: {name} is in {file_names[name]} and in {file_name}, expected once"
          )
        slices[name], file_names[name] = file.get_slice(name), file_name
    return slices

  def _check(self) -> dict[str, str]:
    problems, dtypes = [], {}
    if not self.shapes.keys() & self._slices.keys():
      raise PretrainedError(
        f"{self.directory}: got tensors like {min(self._slices, default=None)}, expected "
        f"{len(self.shapes)} like {min(self.shapes)}"
      )
    for name, shape in self.shapes.items():
      if name not in self._slices:
        problems.append(f"{name} missing")
        continue
      tensor = self._slices[name]
      dtypes[name] = _DTYPES.get(tensor.get_dtype(), "")
      if tuple(tensor.get_shape()) != shape or not dtypes[name]:
        problems.append(
          f"{name}: got {tensor.get_dtype()} {tensor.get_shape()}, expected {list(shape)} of one "
          f"of {sorted(_DTYPES)}"
        )
    left = {n for n in self._slices if n not in self.shapes and not n.endswith(_UNUSED)}
    if not problems and _OUTPUT in left:
      left.remove(_OUTPUT)
      if not self._is_copy(_OUTPUT, _INPUT):
        problems.append(
          f"{_OUTPUT} is not {_INPUT}, expected a copy of it, or tie_word_embeddings = false in "
          f"{CONFIG}"
        )
    problems += [f"{name} unexpected" for name in sorted(left)]
    if problems:
      shown = "; ".join(problems[:8]) + (f"; {len(problems) - 8} more" if problems[8:] else "")
      raise PretrainedError(f"{self.directory}: {shown}")
    return dtypes

  def _is_copy(self, name: str, of: str) -> bool:
    a, b = self._slices[name], self._slices[of]
    rows, columns = b.get_shape()
    if a.get_shape() != b.get_shape() or a.get_dtype() != b.get_dtype():
      return False
    at_once = max(1, _COMPARED // columns)
    parts = (slice(i, min(i + at_once, rows)) for i in range(0, rows, at_once))
    return all(np.array_equal(a[part], b[part]) for part in parts)

  def load(self, shardings: policy.Params, dtype: DTypeLike = np.float32) -> policy.Params:
    """Parameters in `dtype`, each device reading its own part; `shardings` is a tree like them."""
    flat = policy.flatten(shardings)
    return policy.unflatten(
      {
        path: jax.make_array_from_callback(
          shape, flat[path], lambda index, p=place, s=shape: self._read(p, s, index, dtype)
        )
        for path, (place, shape) in _places(self.config).items()
      }
    )

  def _read(
    self, place: _Place, shape: tuple[int, ...], index: tuple[slice, ...] | None, dtype: DTypeLike
  ) -> np.ndarray:
    assert index is not None
    cut = [range(size)[part] for size, part in zip(shape, index, strict=True)]
    ours = np.empty([len(part) for part in cut], dtype)
    flat = ours.reshape(-1, *ours.shape[place.stacked :])
    shape, index = shape[place.stacked :], index[place.stacked :]
    for i, name in enumerate(place.names(cut[: place.stacked])):
      theirs = self._slices[name][_their_index(place, index, shape)]
      flat[i] = _to_ours(place, theirs, index, shape)
    return ours


def weight_files(directory: pathlib.Path | epath.Path) -> list[str]:
  """Names of a checkpoint's weight files; as in transformers, a single file goes before an index.

  Args:
    directory: local or in a bucket.

  Raises:
    PretrainedError: a file is missing, the index names none, or there is an adapter, with which
      transformers would read another model.
  """
  files = {path.name for path in directory.iterdir()}
  if _ADAPTER in files:
    raise PretrainedError(
      f"{directory / _ADAPTER}: adapters are not read, expected a model into which they are merged "
      "(merge_and_unload of the package peft), without this file"
    )
  names = [SINGLE]
  if SINGLE not in files and INDEX in files:
    key = f"{directory / INDEX}: weight_map"
    of_tensors = _read_json(directory / INDEX).get("weight_map")
    if not isinstance(of_tensors, dict) or not of_tensors:
      got = config_reader.abbreviate(of_tensors)
      raise PretrainedError(f"{key}: got {got}, expected an object of tensor names and file names")
    for name, file in of_tensors.items():
      if not isinstance(file, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", file):
        expected = "expected the name of a *.safetensors file beside it"
        raise PretrainedError(f"{key}.{name}: got {config_reader.abbreviate(file)}, {expected}")
    names = sorted(set(of_tensors.values()))
  missing = [name for name in names if name not in files]
  if missing:
    hints = [f"; {hint}" for pattern, hint in _HINTS.items() if fnmatch.filter(files, pattern)]
    raise PretrainedError(f"{directory}: files {missing} are missing{''.join(hints)}")
  return names


def tensor_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
  """Name -> shape of every tensor of a published checkpoint of this architecture."""
  return {
    name: _their_shape(place, shape[place.stacked :])
    for place, shape in _places(config).values()
    for name in place.names([range(n) for n in shape[: place.stacked]])
  }


def save(
  directory: pathlib.Path, config: DecoderConfig, params: policy.Params, dtypes: dict[str, str]
) -> None:
  """Writes *.safetensors, and an index of several; `dtypes`: their name -> numpy dtype."""
  directory.mkdir(parents=True, exist_ok=True)
  shards: list[dict[str, Any]] = [{}]
  size = 0
  for name, tensor in _their_values(config, params, dtypes):
    if shards[-1] and size + tensor.nbytes > _SHARD_BYTES:
      _write_shard(directory / f"part-{len(shards)}", shards[-1])
      shards[-1] = dict.fromkeys(shards[-1])  # the names are enough
      shards.append({})
      size = 0
    shards[-1][name] = tensor
    size += tensor.nbytes
  _write_shard(directory / f"part-{len(shards)}", shards[-1])
  if len(shards) == 1:
    (directory / "part-1").rename(directory / SINGLE)
    return
  weight_map = {}
  for number, names in enumerate(shards, 1):
    file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    (directory / f"part-{number}").rename(directory / file)
    weight_map |= dict.fromkeys(names, file)
  sizes = {name: math.prod(shape) for name, shape in tensor_shapes(config).items()}
  total = sum(size * jax.numpy.dtype(dtypes[name]).itemsize for name, size in sizes.items())
  index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
  (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_shard(path: pathlib.Path, tensors: dict[str, Any]) -> None:
  safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def _their_values(
  config: DecoderConfig, params: policy.Params, dtypes: dict[str, str]
) -> Iterator[tuple[str, np.ndarray]]:
  flat = policy.flatten(params)
  for path, (place, shape) in _places(config).items():
    stacked = [range(n) for n in shape[: place.stacked]]
    for at, name in zip(itertools.product(*stacked), place.names(stacked), strict=True):
      tensor = _to_theirs(place, np.asarray(flat[path][at]))
      yield name, tensor.astype(jax.numpy.dtype(dtypes[name]))


def _is_pointer(path: pathlib.Path | epath.Path) -> bool:
  if not path.is_file():
    return False
  with path.open("rb") as file:
    return file.read(100).startswith(b"version https://git-lfs")


def _read_json(path) -> dict:
  try:
    return config_reader.parse(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise PretrainedError(f"{path}: no such file") from None
  except (OSError, ValueError) as error:
    raise PretrainedError(f"{path}: {error}") from None
