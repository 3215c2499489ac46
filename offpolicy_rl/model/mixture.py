"""Mixture of experts: every token is worked on by the few experts that its router likes best.

Dimension suffixes: N tokens, D width, F expert width, E experts, K experts per token.
"""

import jax
import jax.numpy as jnp


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
  expert has a capacity, no token is dropped.
  """
  tokens, per_token = chosen_NxK.shape
  order = jnp.argsort(chosen_NxK.reshape(-1), stable=True)
  sizes_E = jnp.bincount(chosen_NxK.reshape(-1), length=gate_ExDxF.shape[0]).astype(jnp.int32)
  sorted_x = x_NxD[order // per_token]
  gate = activation(jax.lax.ragged_dot(sorted_x, gate_ExDxF, sizes_E))
  h = gate * jax.lax.ragged_dot(sorted_x, up_ExDxF, sizes_E)
  sorted_y = jax.lax.ragged_dot(h, down_ExFxD, sizes_E)
  y_NxKxD = sorted_y[jnp.argsort(order)].reshape(tokens, per_token, -1)
  return jnp.einsum("nkd,nk->nd", y_NxKxD, weights_NxK.astype(y_NxKxD.dtype))
