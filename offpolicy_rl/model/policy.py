"""The decoder as pure functions of a parameter tree: initialise, forward, log-probabilities.

Parameters are nested dicts of arrays; `flatten` gives each leaf the "/"-separated name used on the
wire and in checkpoints.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.sharding import Mesh
from jax.typing import DTypeLike

from offpolicy_rl import types
from offpolicy_rl.model import decoder, mixture, paging, sharding

Params = dict


@functools.cache
def _graph(config: decoder.DecoderConfig):
  return nnx.split(nnx.eval_shape(lambda: decoder.Decoder(config, nnx.Rngs(0))))[0]


def init(config: decoder.DecoderConfig, key: jax.Array) -> Params:
  """Fresh float32 parameters."""
  return nnx.to_pure_dict(nnx.split(decoder.Decoder(config, nnx.Rngs(params=key)))[1])


def shapes(config: decoder.DecoderConfig) -> Params:
  """Shape and dtype of every parameter, found without allocating anything."""
  return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def cast(config: decoder.DecoderConfig, params: Params) -> Params:
  """Parameters, or their shapes, in the dtype that the decoder computes in; integers stay."""
  return jax.tree.map(lambda x: _with_dtype(x, config.compute_dtype), params)


def _with_dtype(x, dtype):
  if x.dtype == jnp.int8:
    return x
  is_shape = isinstance(x, jax.ShapeDtypeStruct)
  return jax.ShapeDtypeStruct(x.shape, dtype) if is_shape else x.astype(dtype)


def module(config: decoder.DecoderConfig, params: Params) -> decoder.Decoder:
  """The decoder with these parameters, cast to the compute dtype."""
  return nnx.merge(_graph(config), cast(config, params))


def apply(
  config: decoder.DecoderConfig,
  params: Params,
  tokens: jax.Array,
  positions: jax.Array,
  cache: paging.Cache | None = None,
) -> tuple[jax.Array, paging.Cache | None]:
  """`Decoder.__call__` with explicit parameters."""
  return module(config, params)(tokens, positions, cache)


def param_axes(path: tuple, leaf: Any) -> tuple[str | None, ...]:
  """Logical axes of a parameter, by the last name in its path.

  Works for optimizer state, too: a leaf that mirrors a parameter ends in its name; anything else
  (counters) is replicated.
  """
  name = next(
    (p.key for p in reversed(path) if getattr(p, "key", None) in decoder.PARAM_AXES), None
  )
  axes = decoder.PARAM_AXES.get(name, ())
  return axes if len(axes) == leaf.ndim else (None,) * leaf.ndim


def param_shardings(mesh: Mesh, tree: Any) -> Any:
  """NamedShardings for parameters, or for any tree that mirrors them."""
  return sharding.tree_shardings(mesh, tree, param_axes)


def flatten(params: Params) -> dict[str, Any]:
  """Nested parameters -> {path: array}, sorted by path."""
  return dict(sorted(traverse_util.flatten_dict(params, sep="/").items()))


def unflatten(tensors: Mapping[str, Any]) -> Params:
  """Inverse of `flatten`."""
  return traverse_util.unflatten_dict(tensors, sep="/")


def copy(params: Params, dtype: DTypeLike | None = None) -> Params:
  """New arrays in the same layout, cast to `dtype` if given; later donation leaves them alone."""
  return jax.tree.map(lambda x: jnp.array(x, dtype or x.dtype, copy=True), params)


class TokenStats(NamedTuple):
  """Results per scored token."""

  logprobs: jax.Array  # float32, log p(token | those before it)
  entropy: jax.Array  # float32, in nats, of the distribution that the token was drawn from
  candidate_logprobs: jax.Array | None = None  # float32 [..., I], of `rows.candidates`


def token_stats(
  config: decoder.DecoderConfig,
  params: Params,
  rows: types.PackedRows,
  temperature: float,
  *,
  chunk: int = 0,
) -> TokenStats:
  """Statistics [B, Q] of the scored tokens under softmax(logits / temperature).

  Logits are computed for these tokens only. The shift by one between a logit and the token that it
  predicts is in `rows.sources` and nowhere else.

  Args:
    temperature: > 0, that of the sampler.
    chunk: scored columns whose logits exist at a time, also in the backward pass, which computes
      them again; 0 = all. Rows stay together, so that a sharded batch does.
  """
  model = module(config, params)
  packing = (rows.segments, rows.ends)
  hidden = model.hidden(rows.tokens, rows.positions, packing=packing)[0]
  hidden = jnp.take_along_axis(hidden, rows.sources[..., None], axis=1)

  columns, scored = rows.targets.shape[1], (rows.targets, rows.candidates)
  if not chunk or chunk >= columns:
    return _stats(model.logits(hidden), *scored, temperature)

  def stats_of_columns(output, hidden, targets, candidates) -> TokenStats:
    return _stats(decoder.logits(config, output, hidden), targets, candidates, temperature)

  def joined(x):
    return x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :columns]

  def stats_of_rows(output, *rows) -> TokenStats:
    again = jax.checkpoint(stats_of_columns)
    parts = jax.tree.map(lambda x: _columns(x, chunk), rows)
    _, stats = jax.lax.scan(lambda _, part: (None, again(output, *part)), None, parts)
    return jax.tree.map(joined, stats)

  # In float32: the gradients of all chunks are summed in the dtype that it has here.
  output = params[decoder.output_name(config)]
  return sharding.by_rows(stats_of_rows, output, (hidden, *scored))


def _stats(logits, targets, candidates, temperature: float) -> TokenStats:
  log_p = jax.nn.log_softmax(logits / temperature)
  logprobs = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
  entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
  if candidates is None:
    return TokenStats(logprobs, entropy)
  return TokenStats(logprobs, entropy, jnp.take_along_axis(log_p, candidates, axis=-1))


def router_loads(
  config: decoder.DecoderConfig, params: Params, rows: types.PackedRows
) -> mixture.Load:
  """Router statistics [L, ...] of every layer of a mixture of experts."""
  packing = (rows.segments, rows.ends)
  loads = module(config, params).hidden(rows.tokens, rows.positions, packing=packing)[2]
  assert loads is not None, "a mixture of experts"
  return loads


def _columns(x: jax.Array, chunk: int) -> jax.Array:
  """[B, Q, ...] -> [Q / chunk, B, chunk, ...], padded at the end."""
  padded = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk), *[(0, 0)] * (x.ndim - 2)])
  return padded.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)
