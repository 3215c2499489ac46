"""Gradients of presets against those of the simpler objectives that they are said to reduce to."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl import losses
from offpolicy_rl.losses import reductions
from tests.conftest import ROOT
from tests.losses import slow_reference
from tests.losses.objectives_test import LANES
from tests.losses.slow_reference import random_inputs
from tests.params import some

GROUPS, GROUP, LENGTH = 3, 4, 6  # arrays of objectives_test.py's shapes, which are compiled
SETTINGS = {
  "one update": reductions.Setting(),
  "several updates": reductions.Setting(updates=4),
  "on-policy": reductions.Setting(on_policy=True),
}
# Beside the presets: choices with which a clip, a bound or a scale does or does not matter.
VARIANTS = (
  ("tis", {"correction_high": 1.28}),
  ("tis", {"correction": "seq_truncate"}),
  ("tis", {"dual_clip": 0.5}),
  ("tis", {"ratio_max": 0.5}),
  ("tis", {"opsm_delta": 0.05}),
  ("tis", {"opsm_delta": 0.05, "weight": "truncate", "weight_high": 0.9}),
  ("cispo", {"opsm_delta": 0.05}),
  ("tis", {"level": "sequence", "correction": "token_mask", "correction_high": 1.1}),
  ("tis", {"correction_low": 1.05}),
  ("decoupled_ppo", {"proximal": "current"}),
  ("cispo", {"weight_high": 2.0}),
  ("cispo", {"weight_high": 0.9}),
  ("cispo", {"weight_high": 2.0, "level": "sequence"}),
  ("aipo", {"anchor": "proximal"}),
  ("sapo", {"anchor": "proximal", "correction": "token_truncate", "correction_high": 1.1}),
  ("prime_dppo", {"anchor": "proximal"}),
  ("prime_double_mask", {"anchor": "proximal"}),
  ("minirl", {"correction": "none", "shift": 0.1}),
  ("beta_shift", {"kappa": 0.0}),
  ("beta_shift", {"kappa": 1.0, "beta": 0.1, "anchor": "proximal"}),
  ("kimi", {"anchor": "proximal", "kl_coef": 0.1}),
  ("kimi", {"kl_coef": 0.1}),
  ("beta_shift", {"kappa": 0.0, "kl_coef": 0.5}),
  ("beta_shift", {"kappa": 0.5, "shift": 0.05}),
  ("beta_shift", {"log_ratio": "mean", "anchor": "proximal"}),
  ("reinforce", {"aggregation": "constant"}),
  ("reinforce", {"kl_coef": 0.1}),
  ("rloo", {"kl_coef": 0.1}),
  ("rloo", {"shift": 0.1}),
  ("asymre", {"shift": 0.0, "kappa": 1.0}),
  ("gspo", {"anchor": "proximal", "correction": "token_truncate", "correction_high": 1.1}),
  ("mu_grpo", {"weight_low": 1.5}),
  ("kimi_k25", {"ratio_min": 0.9}),
  ("m2po", {"anchor": "proximal", "moment_directional": False}),
  ("vespo", {"anchor": "proximal", "correction": "seq_truncate", "correction_high": 1.1}),
  ("distill", {"weight_high": 0.9}),
  ("distill", {"weight": "none", "correction": "token_truncate", "correction_high": 2.0}),
  ("distill", {"weight": "veto", "weight_low": 1.5, "advantage": "mean"}),
)


def cases(variants=VARIANTS) -> list[losses.Choices]:
  wide = {"geo_mask": {"correction_low": 0.4, "correction_high": 2.5}}  # else nothing is left
  presets = [(name, wide.get(name, {})) for name in sorted(losses.PRESETS)]
  return [
    losses.choose(name, **{"group_size": GROUP, "max_tokens": LENGTH} | changed)
    for name, changed in (*presets, *variants)
  ]


def inputs_of(setting: reductions.Setting, seed: int) -> losses.LossInputs:
  """Groups of four rows; the last group has equal rewards."""
  rng = np.random.default_rng(seed)
  shape = (GROUPS * GROUP, LENGTH)
  policy = -rng.exponential(1.0, shape)
  spread = np.tile([[0.05], [0.5], [1.0], [3.0]], (GROUPS, 1))  # of rows, so that every bound binds
  near = lambda: np.minimum(policy + rng.normal(0, spread, shape), -1e-3)
  return losses.LossInputs(
    policy_logprobs=policy,
    sampler_logprobs=policy if setting.on_policy else near(),
    loss_mask=np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (GROUPS * GROUP, 1)),
    rewards=np.append(rng.normal(size=(GROUPS - 1) * GROUP), np.ones(GROUP)),
    group_ids=np.repeat(np.arange(GROUPS), GROUP),
    reference_logprobs=near(),
    proximal_logprobs=policy if setting.updates == 1 else near(),
    values=rng.normal(size=GROUPS * GROUP),
    candidate_logprobs=policy[..., None] - 1.0,
    sampler_candidate_logprobs=(policy if setting.on_policy else near())[..., None] - 1.0,
    teacher_logprobs=near(),
  )


@functools.cache
def gradient(choices: losses.Choices, setting: reductions.Setting) -> np.ndarray:
  """Of several batches, so that a factor that depends on the batch makes a difference.

  With the proximal policy that the learner would give: the log-linear one is half way here.
  """
  objective = losses.objective(choices)

  def one(x: losses.LossInputs) -> jax.Array:
    if choices.proximal == "loglinear":
      x = x._replace(proximal_logprobs=(x.sampler_logprobs + x.policy_logprobs) / 2)
    prepared = objective.prepare(x)
    given = {key: getattr(x, key) for key in ("policy_logprobs", "candidate_logprobs")}
    slopes = jax.grad(lambda given: objective.loss(x._replace(**given), prepared))(given)
    return jnp.concatenate([slopes["policy_logprobs"], slopes["candidate_logprobs"][..., 0]], -1)

  with jax.enable_x64(True):
    batches = jax.tree.map(
      lambda *xs: jnp.stack(xs), *(inputs_of(setting, i) for i in range(LANES))
    )
    return np.asarray(jax.vmap(one)(batches))


@pytest.mark.parametrize(
  ("name", "variants"), some([("one update", ())], [(name, VARIANTS) for name in SETTINGS])
)
def test_reduced_choices_have_the_same_gradient_and_only_they(name, variants):
  setting, found = SETTINGS[name], cases(variants)
  made = [reductions.reduced(choices, setting) for choices in found]
  gradients = [gradient(choices, setting) for choices in found]
  for choices, (simple, factor), expected in zip(found, made, gradients, strict=True):
    again = gradient(simple, setting)
    np.testing.assert_allclose(
      factor * again, expected, rtol=1e-9, atol=1e-12, err_msg=str(choices)
    )
  for a, b in itertools.combinations(range(len(found)), 2):
    direction = [g / np.linalg.norm(g) for g in (gradients[a], gradients[b])]
    same = np.allclose(*direction, rtol=1e-9, atol=1e-12)
    assert same == (made[a].choices == made[b].choices), (made[a].choices, made[b].choices)


def names(groups) -> set[frozenset[str]]:
  return {frozenset(name for name, _ in group) for group in groups}


def test_presets_that_coincide():
  """By hand, from their formulas: vargrad and gvpo are copg times 2 beta, cispo has another cap
  than tis.
  """
  presets = [losses.choose(c, group_size=GROUP, max_tokens=9) for c in losses.PRESETS.values()]
  always = {frozenset({"copg", "vargrad", "gvpo"}), frozenset({"reinforce", "rloo"})}
  assert names(reductions.coinciding(presets, SETTINGS["several updates"])) == always
  assert names(reductions.coinciding(presets)) == always
  [factors] = [dict(g) for g in reductions.coinciding(presets) if "copg" in dict(g)]
  twice_beta = 2 * losses.PRESETS["vargrad"].beta
  assert factors == {"copg": 1.0, "vargrad": twice_beta, "gvpo": twice_beta}
  on_policy = names(reductions.coinciding(presets, SETTINGS["on-policy"]))
  assert any({"reinforce", "rloo", "copg", "dr_grpo", "minirl"} <= group for group in on_policy)
  assert any({"cispo", "tis", "dual_clip", "decoupled_ppo"} <= group for group in on_policy)


def test_luspo_is_gspo_with_the_sum_over_tokens():
  """The same choices but one; completions of one length are then all weighted by that length."""
  sizes = {"group_size": GROUP, "max_tokens": LENGTH}
  luspo, gspo = (losses.choose(name, **sizes) for name in ("luspo", "gspo"))
  assert losses.choose(gspo, aggregation="seq_sum").used() == luspo.used()
  assert all(
    getattr(luspo, key) == getattr(gspo, key) for key in luspo.used() - {"name", "aggregation"}
  )
  x = random_inputs(0)
  x = x._replace(loss_mask=np.ones_like(x.loss_mask))
  (loss, _), (other, _) = (slow_reference.loss_and_gradient(c, x) for c in (luspo, gspo))
  np.testing.assert_allclose(loss, slow_reference.LENGTH * other, rtol=1e-12)


def test_dppo_with_primes_bounds_and_penalty_is_its_default():
  changed = {"advantage": "mean", "gap_low": 0.2, "gap_high": 0.2, "kl_tau": 1e-3}
  pair = [losses.choose("dppo_tv", **changed), losses.choose("prime_dppo")]
  several = reductions.Setting(updates=2)
  assert len(reductions.coinciding(pair, several)) == 1
  assert not reductions.coinciding([losses.choose("dppo_tv"), pair[1]], several)


@pytest.mark.parametrize(("updates", "same"), [(1, True), (2, False)])
def test_tis_is_cispo_at_equal_cap_as_long_as_nothing_clips(updates, same):
  pair = [losses.choose("tis", correction_high=1.28), losses.choose("cispo")]
  assert bool(reductions.coinciding(pair, reductions.Setting(updates))) == same


def test_a_function_of_ones_own_is_not_judged():
  own = losses.choose("tis", fn="my_module:my_function")
  assert reductions.reduced(own) == (own, 1.0)


def test_the_page_lists_what_coincides():
  """The table of losses/README.md, for the sizes of configs/base.py."""
  text = (ROOT / "offpolicy_rl/losses/README.md").read_text()
  listed = text.partition("<!-- coinciding -->\n")[2].partition("<!-- end of coinciding -->")[0]
  assert listed == table()


def table() -> str:
  presets = config_lib.presets(config_lib.base())
  rows = ["| one update per batch | presets |", "| --- | --- |"]
  for words, setting in (("any lag", SETTINGS["one update"]), ("on-policy", SETTINGS["on-policy"])):
    for group in reductions.coinciding(presets, setting):
      rows.append(f"| {words} | {' '.join(f'`{name}`' for name, _ in group)} |")
  return "\n".join(rows) + "\n"
