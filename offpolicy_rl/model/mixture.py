"""Mixture of experts: each token is processed by the few experts that its router scores highest.

Letters as in `types`: U tokens, W experts per token, F width of an expert.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from offpolicy_rl.model import sharding


def route(
  x_UxD: jax.Array, router_DxE: jax.Array, experts_per_token: int, normalize: bool
) -> tuple[jax.Array, jax.Array]:
  """Softmax router -> weights float32 [U, W] and experts int32 [U, W] of each token.

  `normalize`: the weights of a token's experts add up to 1 (Qwen3-MoE, arXiv 2505.09388).
  """
  odds_UxE = jax.nn.softmax((x_UxD @ router_DxE).astype(jnp.float32))
  weights_UxW, chosen_UxW = jax.lax.top_k(odds_UxE, experts_per_token)
  if normalize:
    weights_UxW = weights_UxW / jnp.sum(weights_UxW, axis=-1, keepdims=True)
  return weights_UxW, chosen_UxW


def apply(
  x_UxD: jax.Array,
  weights_UxW: jax.Array,
  chosen_UxW: jax.Array,
  gate_ExDxF: jax.Array,
  up_ExDxF: jax.Array,
  down_ExFxD: jax.Array,
  activation: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """The weighted sum of the experts' gated MLPs -> [U, D].

  Tokens are sorted by expert, so that each expert's form one block of a grouped matrix product; no
  expert has a capacity and no token is dropped. Where a mesh splits the experts, each shard adds
  the contribution of its experts.
  """

  def local(first, x_UxD, weights_UxW, chosen_UxW, gate, up, down):
    """Contribution [U, D] of the experts of one shard, the first of which has number `first`."""
    experts, (tokens, per_token) = gate.shape[0], chosen_UxW.shape
    expert_UxW = chosen_UxW - first
    is_here_UxW = (expert_UxW >= 0) & (expert_UxW < experts)
    expert = jnp.where(is_here_UxW, expert_UxW, experts).reshape(-1)  # other shards' come last
    order = jnp.argsort(expert, stable=True)
    sizes = jnp.bincount(expert, length=experts + 1)[:experts].astype(jnp.int32)
    # Rows behind the last block belong to no expert: their product and its gradient are undefined.
    # One select keeps them out of the tokens' gradient, another out of the result.
    in_block = (expert[order] < experts)[:, None]
    sorted_x = jnp.where(in_block, x_UxD[order // per_token], 0)
    h = activation(jax.lax.ragged_dot(sorted_x, gate, sizes))
    h = h * jax.lax.ragged_dot(sorted_x, up, sizes)
    sorted_y = jax.lax.ragged_dot(h, down, sizes)
    y_UxWxD = sorted_y[jnp.argsort(order)].reshape(tokens, per_token, -1)
    y_UxWxD = jnp.where(is_here_UxW[..., None], y_UxWxD, 0)
    return jnp.einsum("uwd,uw->ud", y_UxWxD, weights_UxW.astype(y_UxWxD.dtype))

  tokens = (x_UxD, weights_UxW, chosen_UxW)
  return sharding.sum_over_experts(local, tokens, (gate_ExDxF, up_ExDxF, down_ExFxD))


class Load(NamedTuple):
  """Sums over tokens of how a layer's router spread them; those of several parts add up."""

  assigned_E: jax.Array  # float32, tokens that chose an expert
  odds_E: jax.Array  # float32, of the router's softmax
  entropy: jax.Array  # float32, of that softmax, in nats
  tokens: jax.Array  # float32


def load(
  x_UxD: jax.Array, router_DxE: jax.Array, chosen_UxW: jax.Array, valid_U: jax.Array
) -> Load:
  """Sums over the tokens that `valid_U` (bool) marks."""
  log_odds_UxE = jax.nn.log_softmax((x_UxD @ router_DxE).astype(jnp.float32))
  odds_UxE = jnp.exp(log_odds_UxE)
  counted_U = valid_U.astype(jnp.float32)
  chose_UxE = jnp.sum(jax.nn.one_hot(chosen_UxW, odds_UxE.shape[-1]), axis=1)
  return Load(
    assigned_E=counted_U @ chose_UxE,
    odds_E=counted_U @ odds_UxE,
    entropy=-jnp.sum(counted_U[:, None] * odds_UxE * log_odds_UxE),
    tokens=jnp.sum(counted_U),
  )


def load_metrics(loads: Load) -> dict[str, jax.Array]:
  """Router statistics from loads [L, ...] of L layers.

  router/max_load and router/worst_layer: tokens of the busiest expert over the average one, mean
  and maximum over layers (1 = even). router/unused: share of experts without a token.
  router/balance: E sum_e f_e P_e with f the shares and P the mean odds (1 = even), the auxiliary
  loss of Switch Transformers (arXiv 2101.03961), only measured here. router/entropy: nats.
  """
  experts = loads.assigned_E.shape[-1]
  share_LxE = loads.assigned_E / jnp.sum(loads.assigned_E, axis=-1, keepdims=True)
  odds_LxE = loads.odds_E / loads.tokens[:, None]
  busiest_L = experts * jnp.max(share_LxE, axis=-1)
  return {
    "router/max_load": jnp.mean(busiest_L),
    "router/worst_layer": jnp.max(busiest_L),
    "router/unused": jnp.mean(loads.assigned_E == 0),
    "router/balance": jnp.mean(experts * jnp.sum(share_LxE * odds_LxE, axis=-1)),
    "router/entropy": jnp.mean(loads.entropy / loads.tokens),
  }
