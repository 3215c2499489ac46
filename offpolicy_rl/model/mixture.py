"""Mixture of experts: every token is worked on by the few experts that its router likes best.

Dimension suffixes: N tokens, D width, F expert width, E experts, K experts per token, L layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from offpolicy_rl.model import sharding


def route(
  x_NxD: jax.Array, router_DxE: jax.Array, experts_per_token: int, normalize: bool
) -> tuple[jax.Array, jax.Array]:
  """Softmax router -> weights float32 [N, K] and experts int32 [N, K] of each token.

  `normalize`: the weights of the chosen experts add up to 1 (Qwen3-MoE, arXiv 2505.09388).
  """
  odds_NxE = jax.nn.softmax((x_NxD @ router_DxE).astype(jnp.float32))
  weights_NxK, chosen_NxK = jax.lax.top_k(odds_NxE, experts_per_token)
  if normalize:
    weights_NxK = weights_NxK / jnp.sum(weights_NxK, axis=-1, keepdims=True)
  return weights_NxK, chosen_NxK


def apply(x_NxD, weights_NxK, chosen_NxK, gate_ExDxF, up_ExDxF, down_ExFxD, activation):
  """The experts' gated MLPs, weighted -> [N, D].

  Tokens are sorted by expert, so that each expert's are one block of a grouped matrix product; no
  expert has a capacity, no token is dropped. Where a mesh splits the experts, each shard adds what
  its own contribute.
  """

  def local(first, x_NxD, weights_NxK, chosen_NxK, gate, up, down):
    """What the experts of one shard, from number `first` on, add to the tokens [N, D]."""
    held, (tokens, per_token) = gate.shape[0], chosen_NxK.shape
    mine_NxK = chosen_NxK - first
    own_NxK = (mine_NxK >= 0) & (mine_NxK < held)
    mine = jnp.where(own_NxK, mine_NxK, held).reshape(-1)  # those of other shards come last
    order = jnp.argsort(mine, stable=True)
    sizes = jnp.bincount(mine, length=held + 1)[:held].astype(jnp.int32)
    # Rows behind the last block are nobody's: what a product holds there is not defined, nor is
    # its gradient. One select keeps it out of the tokens' gradient, another out of the result.
    in_block = (mine[order] < held)[:, None]
    sorted_x = jnp.where(in_block, x_NxD[order // per_token], 0)
    h = activation(jax.lax.ragged_dot(sorted_x, gate, sizes))
    h = h * jax.lax.ragged_dot(sorted_x, up, sizes)
    sorted_y = jax.lax.ragged_dot(h, down, sizes)
    y_NxKxD = sorted_y[jnp.argsort(order)].reshape(tokens, per_token, -1)
    y_NxKxD = jnp.where(own_NxK[..., None], y_NxKxD, 0)
    return jnp.einsum("nkd,nk->nd", y_NxKxD, weights_NxK.astype(y_NxKxD.dtype))

  given = (x_NxD, weights_NxK, chosen_NxK)
  return sharding.sum_over_experts(local, given, (gate_ExDxF, up_ExDxF, down_ExFxD))


class Load(NamedTuple):
  """How a layer's router spread the tokens; sums, so that those of several parts add up."""

  assigned_E: jax.Array  # float32, tokens that chose an expert
  odds_E: jax.Array  # float32, of the router's softmax
  entropy: jax.Array  # float32, of that softmax, in nats
  tokens: jax.Array  # float32


def load(x_NxD, router_DxE, chosen_NxK, valid_N) -> Load:
  """Of the tokens that `valid_N` (bool) counts."""
  log_odds_NxE = jax.nn.log_softmax((x_NxD @ router_DxE).astype(jnp.float32))
  odds_NxE = jnp.exp(log_odds_NxE)
  counted_N = valid_N.astype(jnp.float32)
  chose_NxE = jnp.sum(jax.nn.one_hot(chosen_NxK, odds_NxE.shape[-1]), axis=1)
  return Load(
    assigned_E=counted_N @ chose_NxE,
    odds_E=counted_N @ odds_NxE,
    entropy=-jnp.sum(counted_N[:, None] * odds_NxE * log_odds_NxE),
    tokens=jnp.sum(counted_N),
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
