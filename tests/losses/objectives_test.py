"""Each objective against slow_reference.py, and what holds for all of them."""

import inspect
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import losses
from offpolicy_rl.losses import advantages, functions, ratios, weights
from tests import pages
from tests.losses import slow_reference
from tests.losses.slow_reference import EMPTY_ROW, random_inputs
from tests.losses.variants import LONG_VARIANTS, VARIANTS
from tests.params import some

NAMES = sorted(losses.PRESETS)
# Made of parts that others have, too: at their edges in `make test-long` only.
COMPOSED = ("bapo", "dppo_tv", "gvpo", "kimi_k25", "luspo", "max_rl", "mu_grpo", "vaco", "vespo")
EDGES = ([name for name in NAMES if name not in COMPOSED], COMPOSED)
NOW = 9  # current version; random_inputs samples with 3 to 7
LANES = 6
# One preset of every kind of loss, for what is compiled as a whole and costs seconds.
ONE_OF_EACH = ("aipo", "beta_shift", "copg", "dpo", "gspo", "sapo", "tis", "vargrad")
OTHERS = [name for name in NAMES if name not in ONE_OF_EACH]
CASES = [*((name, {}) for name in NAMES), *VARIANTS]


def build(name: str, **choices) -> losses.Objective:
  return losses.objective(name, **{"max_tokens": slow_reference.LENGTH} | choices)


def arrays(x: losses.LossInputs) -> losses.LossInputs:
  return losses.LossInputs(*(None if v is None else jnp.asarray(v) for v in x))


def value_and_gradient(objective: losses.Objective, x: losses.LossInputs, *, metrics: bool = True):
  """(loss, gradient); where nobody gives the proximal policy, as the learner does it.

  metrics: computed beside them, as in a step; they must neither stop nor change a gradient.
  """
  choices, x = objective.choices, arrays(x)
  prepared = objective.prepare(x._replace(policy_logprobs=None))

  def loss(policy):
    given = x._replace(policy_logprobs=policy)
    if choices.needs_proximal and given.proximal_logprobs is None:
      lq = ratios.proximal_logprobs(
        choices.proximal, policy, given.sampler_logprobs, given.versions, NOW
      )
      given = given._replace(proximal_logprobs=lq)
    return objective.loss(given, prepared), metrics and objective.metrics(given, prepared)

  (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(x.policy_logprobs)
  return value, gradient


def stacked(batches) -> losses.LossInputs:
  return jax.tree.map(lambda *xs: jnp.asarray(np.stack(xs)), *batches)


def values_and_gradients(objective: losses.Objective, batches, *, metrics: bool = True):
  """(losses [C], gradients [C, N, M]) of C batches of one shape.

  Always LANES of them side by side, so that an operation is compiled once for all tests.
  """
  lanes_at_once = jax.vmap(lambda x: value_and_gradient(objective, x, metrics=metrics))
  found = []
  for start in range(0, len(batches), LANES):
    lanes = batches[start : start + LANES]
    values = lanes_at_once(stacked(lanes + lanes[-1:] * (LANES - len(lanes))))
    found.append([np.asarray(x)[: len(lanes)] for x in values])
  return tuple(np.concatenate(x) for x in zip(*found, strict=True))


def show(case) -> str:
  name, choices = case
  return "-".join([name, *(f"{key}={value}" for key, value in choices.items())])


def assert_matches_slow_numpy(objective, *batches):
  with jax.enable_x64(True):
    found = values_and_gradients(objective, batches)
  for x, *pair in zip(batches, *found, strict=True):
    for value, expected in zip(
      pair, slow_reference.loss_and_gradient(objective.choices, x, NOW), strict=True
    ):
      np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("case", some(CASES, [(case,) for case in LONG_VARIANTS]), ids=show)
def test_value_and_gradient_match_slow_numpy(case):
  name, choices = case
  assert_matches_slow_numpy(
    build(name, **choices),
    random_inputs(0),
    random_inputs(1, drift=1.0),
    random_inputs(2, drift=0.6, equal_group=1),
  )


@pytest.mark.parametrize("proximal", ["current", "loglinear"])
@pytest.mark.parametrize("name", [n for n in NAMES if losses.PRESETS[n].needs_proximal])
def test_value_and_gradient_with_a_proximal_policy_that_nobody_computed(name, proximal):
  x = random_inputs(3, drift=0.2)._replace(proximal_logprobs=None)
  assert_matches_slow_numpy(build(name, proximal=proximal), x)


PAIRWISE = [n for n in NAMES if losses.PRESETS[n].fn in losses.choices.PAIRWISE]


@pytest.mark.parametrize("choices", [{"scale": "half_over_beta"}, {"scale": "plain"}], ids=str)
@pytest.mark.parametrize("name", ["copg", "rebel"])
def test_the_scale_of_squares_of_pairs(name, choices):
  assert_matches_slow_numpy(build(name, beta=0.3, **choices), random_inputs(0))


@pytest.mark.parametrize("name", PAIRWISE)
def test_pairs_leave_out_groups_without_reward_variance(name):
  assert_matches_slow_numpy(
    build(name, drop_zero_variance=True), random_inputs(2, drift=0.6, equal_group=1)
  )


@pytest.mark.parametrize("name", PAIRWISE)
def test_pairs_compare_rewards_with_the_overlong_penalty(name):
  assert_matches_slow_numpy(build(name, overlong_cache=3, max_tokens=5), random_inputs(0))


@pytest.mark.parametrize("name", ["prime_double_mask", "minirl"])
def test_level_is_for_truncate_and_topr_only(name):
  """Their masks are made of the ratios of tokens; a row's product is no ratio of theirs."""
  assert_matches_slow_numpy(build(name, level="sequence"), random_inputs(1, drift=0.6))


@pytest.mark.parametrize("choices", [{"weight_low": 0.0, "weight_high": 1e9}, {}], ids=str)
def test_double_mask_leaves_out_rows_that_are_far_as_a_whole(choices):
  """One token at e^3: the mean is past 10. Four at e^1.8: the product is past 100, the mean not."""
  gaps = np.tile([-3.0, -2.0, 0.5, 1.8, 2.1, 3.0], 2)[:, None]
  length = np.repeat([1, 4], 6)[:, None]
  sampler = -3.0 - np.random.default_rng(0).random((12, 6))
  x = random_inputs(0)._replace(
    sampler_logprobs=sampler, policy_logprobs=sampler + gaps, loss_mask=np.arange(6) < length
  )
  assert_matches_slow_numpy(build("prime_double_mask", **choices), x)


@pytest.mark.parametrize("sign", ["advantage", "reward"])
def test_topr_tells_positives_of_binary_rewards(sign):
  x = random_inputs(0, drift=1.0)
  x = x._replace(rewards=(x.rewards > 0).astype(float))
  assert_matches_slow_numpy(build("topr", topr_sign=sign), x)


def test_a_ratio_on_the_edge_of_the_band_is_not_clipped():
  """On the first update r = 1 exactly, which clip_low = 0 makes the edge."""
  x = random_inputs(0)
  x = x._replace(policy_logprobs=np.where(x.loss_mask, x.sampler_logprobs, -1.0))
  assert_matches_slow_numpy(build("grpo", clip_low=0.0), x)


@pytest.mark.parametrize("name", some(["beta_shift"], ["copg", "grpo"]))
def test_jit_and_vmap_do_not_change_metrics(name):
  objective = build(name)
  inputs = [arrays(random_inputs(seed)) for seed in (0, 1)]
  _, metrics = jax.jit(jax.vmap(objective))(stacked(inputs))
  for i, one in enumerate(inputs):
    for key, value in objective(one)[1].items():
      np.testing.assert_allclose(metrics[key][i], value, rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", some(ONE_OF_EACH, OTHERS))
def test_gradients_of_row_slices_add_up_to_the_whole(name):
  """Of any rows, of whole groups or the whole batch where they are coupled.

  Slices keep the batch's group ids.
  """
  objective = build(name, kl_coef=0.0 if losses.PRESETS[name].couples_rows else 0.3)
  groups = np.random.default_rng(4).permutation(np.repeat([0, 1, 2], 4))
  x = random_inputs(4)._replace(group_ids=groups)
  parts = np.arange(12).reshape(3, 4)
  if objective.choices.couples_rows:
    parts = np.argsort(groups, stable=True).reshape(3, 4)
  if objective.choices.couples_batch:
    parts = np.arange(12).reshape(1, 12)
  with jax.enable_x64(True):
    _, [gradient] = values_and_gradients(objective, [x])
    x = arrays(x)
    prepared = objective.prepare(x)

    def share(logprobs, rows):
      part, part_prepared = jax.tree.map(lambda v: v[rows], (x, prepared))
      return objective.loss(part._replace(policy_logprobs=logprobs[rows]), part_prepared)

    summed = sum(jax.vmap(jax.grad(share), (None, 0))(x.policy_logprobs, parts))
  np.testing.assert_allclose(summed, gradient, rtol=1e-12, atol=1e-15)


PLUG_IN = """
import jax.numpy as jnp

def my_loss(policy_logprobs, sampler_logprobs, loss_mask, advantages, *, beta, power=2):
  gap = jnp.where(loss_mask, policy_logprobs - sampler_logprobs, 0)
  return beta * advantages * jnp.sum(gap, axis=-1) ** power
"""


def test_an_objective_from_outside(tmp_path, monkeypatch):
  (tmp_path / "plugged_in_objective.py").write_text(PLUG_IN)
  monkeypatch.syspath_prepend(tmp_path)
  x = random_inputs(0)
  with jax.enable_x64(True):
    objective = losses.objective("beta_shift", beta=0.4, fn="plugged_in_objective:my_loss")
    assert objective.choices.kappa == 1.0  # the advantage has its shift, as for any function
    loss, gradient = value_and_gradient(objective, x)
  del sys.modules["plugged_in_objective"]
  expected, slopes = 0.0, np.zeros((12, 6))
  for n in range(12):
    if n == EMPTY_ROW:
      continue
    advantage = x.rewards[n] - x.rewards[x.group_ids == x.group_ids[n]].mean() + 0.4
    u = sum((x.policy_logprobs - x.sampler_logprobs)[n, x.loss_mask[n]])
    expected += 0.4 * advantage * u**2 / 11
    slopes[n, x.loss_mask[n]] = 0.4 * advantage * 2 * u / 11
  np.testing.assert_allclose(loss, expected, rtol=1e-12)
  np.testing.assert_allclose(gradient, slopes, rtol=1e-12)


@pytest.mark.parametrize(
  "fn",
  ["no_such_module:f", "offpolicy_rl.losses.functions:no_such_function", "math:", ":f", ".x:f"],
)
def test_a_function_that_is_not_there_is_refused(fn):
  with pytest.raises(ValueError, match=re.escape(f"objective.fn: got {fn!r}")):
    losses.objective("beta_shift", fn=fn)


def test_a_parameter_that_nothing_is_named_after_is_refused(tmp_path, monkeypatch):
  (tmp_path / "unknown_parameter.py").write_text("def loss(advantages, gamma, *, eps=0.1): ...")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(
    ValueError, match="objective.fn: got 'unknown_parameter:loss', whose .*'gamma'"
  ):
    losses.objective("grpo", fn="unknown_parameter:loss")


FUNCTIONS = {
  "fn": functions.LOSSES,
  "advantage": advantages.ADVANTAGES,
  "weight": {"none": None} | weights.WEIGHTS,
  "correction": {"none": None} | weights.CORRECTIONS,
}


@pytest.mark.parametrize("key", FUNCTIONS)
def test_the_arguments_of_every_function_are_listed_with_their_defaults(key):
  """choices.ARGUMENTS knows them without loading JAX."""
  assert list(FUNCTIONS[key]) == list(losses.choices.ARGUMENTS[key])
  keys = {field.name: field.default for field in losses.choices.OVERRIDABLE}
  for name, function in FUNCTIONS[key].items():
    parameters = inspect.signature(function).parameters if function else {}
    found = {p: keys[p] for p in parameters if p in keys}
    assert found.keys() == set(losses.choices.ARGUMENTS[key][name])
    assert found == {p: parameters[p].default for p in found}


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_sets_only_what_its_functions_use(name):
  preset, plain = losses.PRESETS[name], losses.Choices(name="", formula="", source="")
  changed = {f.name for f in losses.choices.OVERRIDABLE[1:]}
  changed = {key for key in changed if getattr(preset, key) != getattr(plain, key)}
  # A*-PO: the temperature that its values were made with, or that advantage='vhat' takes.
  assert changed - preset.used() == ({"beta1"} if name == "astar_po" else set())


def test_a_loss_is_a_function_of_arrays():
  """PPO's clip by hand: one token inside the band, one past it, one masked."""
  lp, la = jnp.log(jnp.array([[1.1, 1.5, 9.0]])), jnp.zeros((1, 3))
  mask = jnp.array([[True, True, False]])
  loss = losses.ppo_clip(lp, la, jnp.array([2.0]), mask, clip_high=0.28)
  np.testing.assert_allclose(loss, [-2 * 1.1 - 2 * 1.28], rtol=1e-6)


@pytest.mark.parametrize(
  ("field", "name", "choices"),
  [
    ("reference_logprobs", "beta_shift", {"kl_coef": 0.1}),
    ("reference_logprobs", "dpo", {}),
    ("proximal_logprobs", "tis", {}),
    ("proximal_logprobs", "reinforce", {"correction": "token_mask"}),
    ("sampler_logprobs", "grpo", {}),
    ("values", "astar_po", {}),
    ("teacher_logprobs", "distill", {}),
    ("teacher_logprobs", "distill_regression", {}),
  ],
)
def test_missing_inputs_are_an_error_not_zeros(field, name, choices):
  x = arrays(random_inputs(0)._replace(**{field: None}))
  objective = build(name, **choices)
  with pytest.raises(ValueError, match=f"{field}: got None"):
    objective.loss(x, objective.prepare(x))


def test_k3_far_from_the_reference_still_pulls_the_policy_back():
  gap = jnp.array([-100.0, -20.0, -1.0, 0.0, 100.0])
  k3 = lambda x: losses.reference_kl(x[None, None], jnp.zeros((1, 1)), jnp.array([[True]]))[0]
  value, slope = jax.vmap(jax.value_and_grad(k3))(gap)
  assert np.all(np.isfinite(np.square(np.asarray(value)))) and np.all(np.diff(slope) >= 0)
  np.testing.assert_allclose(slope[1:], 1 - np.exp(-np.asarray(gap[1:], float)), rtol=1e-6)
  assert slope[0] == slope[1] < -1e8


def test_ratios_are_exact_to_the_bound_and_grow_as_their_tangent_beyond():
  gap = jnp.array([-np.inf, -5.0, 0.3, 20.0, 25.0])
  value, slope = jax.vmap(jax.value_and_grad(ratios.exp))(gap)
  np.testing.assert_array_equal(value[:4], jnp.exp(gap[:4]))
  np.testing.assert_allclose(value[4], 6 * np.exp(20.0), rtol=1e-6)
  np.testing.assert_allclose(slope[1:], np.exp([-5, 0.3, 20, 20]), rtol=1e-6)


def test_every_preset_names_its_source():
  without_paper = {
    name
    for name, choices in losses.PRESETS.items()
    if "arXiv" not in choices.source and "https://" not in choices.source
  }
  assert without_paper == {"mis", "geo_mask", "prime_dppo", "prime_ipo"}  # blog, code


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"loss_mask": (3, 4)}, r"loss_mask: got shape \(3, 4\), expected \(3, 5\)"),
    ({"rewards": (3, 1)}, r"rewards: got shape \(3, 1\), expected \(3,\)"),
    ({"candidate_logprobs": (2, 5, 9)}, r"candidate_logprobs: got shape \(2, 5, 9\), expected"),
    ({"policy_logprobs": (15,)}, r"policy_logprobs: got shape \(15,\), expected \[completions"),
  ],
)
def test_arrays_that_do_not_belong_together_are_named(wrong, message):
  shapes = dict.fromkeys(("policy_logprobs", "sampler_logprobs", "loss_mask"), (3, 5))
  shapes |= {"rewards": (3,), "group_ids": (3,), "candidate_logprobs": (3, 5, 9)}
  inputs = lambda shapes: losses.LossInputs(**{name: jnp.zeros(s) for name, s in shapes.items()})
  inputs(shapes).check()
  with pytest.raises(ValueError, match=message):
    losses.objective("grpo")(inputs(shapes | wrong))


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_has_a_formula_and_makes_sense(name):
  choices = losses.PRESETS[name]
  assert choices.name == name and choices.formula
  assert (choices.aggregation == "constant") == (name == "dr_grpo")
  if name != "dr_grpo":
    choices.check()


WRONG = [
  ({"gamma": 0.9}, "objective.gamma: unknown key, see "),
  ({"betta": 0.9}, "objective.betta: unknown key, see beta"),
  ({"aggregation": "mean"}, "objective.aggregation: got 'mean', expected one of seq_sum, seq_mean"),
  ({"fn": "ppo"}, "objective.fn: got 'ppo', expected one of regression, centred_squares"),
  ({"beta": 0.0}, "objective.beta: got 0.0, expected a number > 0"),
  ({"beta": float("nan")}, "objective.beta: got nan, expected a number > 0"),
  ({"beta": float("inf")}, "objective.beta: got inf, expected"),
  ({"beta1": float("inf")}, "objective.beta1: got inf, expected"),
  ({"kl_coef": -0.1}, "objective.kl_coef: got -0.1, expected a number >= 0"),
  ({"kappa": float("inf")}, "objective.kappa: got inf, expected a finite number"),
  ({"clip_low": 1.5}, "objective.clip_low: got 1.5, expected in [0, 1]"),
  ({"std_ddof": 2}, "objective.std_ddof: got 2, expected 0 or 1"),
  ({"aggregation": "constant"}, "objective.max_tokens: got 0, expected the longest"),
  ({"overlong_cache": 4}, "objective.max_tokens: got 0, expected the longest"),
  (
    {"fn": "pair_dpo", "kl_coef": 0.1},
    "objective.kl_coef: got 0.1, expected 0 with objective.fn = pair_dpo",
  ),
]


@pytest.mark.parametrize(("choices", "message"), WRONG, ids=str)
def test_values_that_make_no_sense_are_refused(choices, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    losses.objective("grpo", **choices)


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match=r"objective.name: got 'ppo', expected one of aipo, astar"):
    losses.objective("ppo")


def test_none_keeps_what_the_preset_says():
  assert losses.choose("oapl", beta=None, kappa=1.0).beta == losses.PRESETS["oapl"].beta


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
  """The module in losses/README.md, taken from the page, through the flag that it names."""
  page = pathlib.Path(losses.__file__).parent / "README.md"
  (tmp_path / "my_objective.py").write_text(pages.files(page)["my_objective.py"])
  monkeypatch.syspath_prepend(tmp_path)
  assert "--config.objective.fn=my_objective:tempered" in page.read_text()
  x = random_inputs(0)
  loss, _ = losses.objective("beta_shift", fn="my_objective:tempered")(arrays(x))
  rows = [n for n in range(12) if x.loss_mask[n].any()]
  expected = 0.0
  for n in rows:
    group = [x.rewards[i] for i in range(12) if x.group_ids[i] == x.group_ids[n]]
    u = sum((x.policy_logprobs - x.sampler_logprobs)[n, t] for t in np.flatnonzero(x.loss_mask[n]))
    expected -= (x.rewards[n] - np.mean(group) + 0.1) * np.tanh(u) / len(rows)  # kappa beta
  assert float(loss) == pytest.approx(expected, rel=1e-5)
