"""Ratio-free objectives of the literature as choices: regressions on the log-ratio, and pairs.

Symbols: choices.py. `differs` says where the authors' code, or widely used code, does something
else.
"""

from offpolicy_rl.losses.choices import Choices

REGRESSION = (
  Choices(
    name="beta_shift",
    formula="mean (beta u - (r - rbar + kappa beta))^2 / (2 beta)",
    source="Beta-shifted mean over Lambert-tempered targets (Sakhi et al.), arXiv 2605.28150",
    differs="the paper's kappa and beta are not known to us; kappa = 1 shifts by one beta",
    kappa=1.0,
  ),
  Choices(
    name="oapl",
    formula="mean (beta u - (r - Vhat))^2, Vhat = beta1 log mean exp(r / beta1); "
    "`beta` is the paper's beta2",
    source="OAPL, arXiv 2602.19362",
    differs="no authors' code found; the gradient carries a factor 2 beta (scale 'plain')",
    advantage="vhat",
    beta=1e-3,
    beta1=1.0,
    scale="plain",
  ),
  Choices(
    name="astar_po",
    formula="mean (beta u_ref - (r - V*(x)))^2, V* = beta1 log mean exp(r / beta1) of reference "
    "samples, given as `values`",
    source="Accelerating RL for LLM reasoning with optimal advantage regression, arXiv 2505.20686",
    differs="V* is an input here; with advantage='vhat' the current group stands in for it",
    advantage="value",
    anchor="reference",
    beta=1e-3,
    beta1=0.5,
    scale="plain",
  ),
  Choices(
    name="kimi",
    formula="mean (beta u - (r - rbar))^2",
    source="Kimi k1.5: scaling RL with LLMs, arXiv 2501.12599 (eq. 3)",
    differs="the temperature was not published; ROLL regularises sum_t d^2 instead of (sum_t d)^2",
    scale="plain",
  ),
  Choices(
    name="pmd_mean",
    formula="mean (beta u - A)^2 / (2 beta |y|), A = G / (G - 1) (r - rbar)",
    source="Approximation of log-partition function in policy mirror descent, arXiv 2602.05933",
    differs="as OpenKimi's code: divided by |y|, which the Kimi paper does not do",
    advantage="loo",
    beta=0.01,
    aggregation="seq_mean",
  ),
  Choices(
    name="pmd_partition",
    formula="mean (beta u - A)^2 / (2 beta |y|), A = r - beta1 log mean_others exp(r / beta1)",
    source="Approximation of log-partition function in policy mirror descent, arXiv 2602.05933",
    differs="OpenKimi's code clamps the mean of exponentials at 1e-8, a baseline error of up to "
    "18 beta1; this one does not",
    advantage="vhat_loo",
    beta=0.01,
    beta1=0.01,
    aggregation="seq_mean",
  ),
)

CONTRASTIVE = (
  Choices(
    name="copg",
    formula="mean over pairs (beta du - dr)^2 / (4 beta): group variance of beta u - r, / (2 beta)",
    source="Contrastive policy gradient (CoPG), arXiv 2406.19185",
    differs="written as a square: CoPG's own form differs from it by a factor and a constant",
    fn="centred_squares",
  ),
  Choices(
    name="vargrad",
    formula="group variance of beta u - r",
    source="VarGrad: a low-variance gradient estimator, arXiv 2010.10436",
    fn="centred_squares",
    scale="plain",
  ),
  Choices(
    name="rebel",
    formula="mean over pairs (beta du - dr)^2, beta = 1 / eta; pairs of rows 0-1, 2-3, ...",
    source="REBEL: RL via regressing relative rewards, arXiv 2404.16767",
    differs="the authors write (du - eta dr)^2: the same for eta = 1, else eta^2 times ours",
    fn="pair_squares",
    beta=1.0,
    scale="plain",
  ),
  Choices(
    name="dpo",
    formula="mean of -log sigmoid(beta (u_w - u_l)) of each group's best and worst row; u to lr",
    source="Direct preference optimization (DPO), arXiv 2305.18290",
    differs="pairs come from rewards of a group, not from human preferences",
    fn="pair_dpo",
    anchor="reference",
  ),
  Choices(
    name="ipo",
    formula="mean of (u_w - u_l - 1 / (2 beta))^2 of each group's best and worst row; u to lr",
    source="A general theoretical paradigm to understand learning from human preferences (IPO), "
    "arXiv 2310.12036",
    differs="pairs come from rewards of a group, not from human preferences",
    fn="pair_ipo",
    anchor="reference",
  ),
)
