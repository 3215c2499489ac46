"""Which charts there are, and what they are made of. A chart without values is left out."""

from typing import NamedTuple

from offpolicy_rl.observe.metrics import HELDOUT, TRAIN, WARM_START

LINES, STACKED = "lines", "stacked"


class Line(NamedTuple):
  """A metric of the rows of one kind; `low`, `high`: metrics that say what it spreads over."""

  kind: str
  name: str
  label: str
  low: str = ""
  high: str = ""


class Chart(NamedTuple):
  """What a chart shows."""

  title: str
  meaning: str
  unit: str  # of the vertical axis
  lines: tuple[Line, ...]
  form: str = LINES
  log: bool = False
  skip: int = 0  # steps at the beginning: they compile, and would flatten all others


def _train(name: str, label: str, low: str = "", high: str = "") -> Line:
  return Line(TRAIN, name, label, low, high)


RESULTS = (
  Chart(
    "Held-out accuracy",
    "problems that training never shows; shaded: 95 % interval of pass@1",
    "share solved",
    (
      Line(HELDOUT, "heldout/pass@1", "pass@1", "heldout/pass@1_low", "heldout/pass@1_high"),
      Line(HELDOUT, "heldout/greedy", "greedy"),
      Line(HELDOUT, "heldout/pass@k", "pass@k"),
    ),
  ),
  Chart("Reward", "mean over the completions of a batch", "reward", (_train("reward", "reward"),)),
  Chart(
    "Entropy",
    "of the policy, per completion token",
    "nats",
    (_train("entropy", "all"), _train("entropy_correct", "right completions")),
  ),
  Chart(
    "Groups without signal",
    "all their completions have the same reward",
    "share of the batch",
    (_train("groups_without_signal", "share"),),
  ),
  Chart("Completions", "their mean length", "tokens", (_train("completion_tokens", "length"),)),
  Chart(
    "Ended by themselves",
    "completions that were not cut at the limit",
    "share",
    (_train("finished_fraction", "share"),),
  ),
  Chart(
    "Warm start",
    "imitation of demonstrations before step 0; it has steps of its own",
    "nats per token",
    (Line(WARM_START, "loss", "loss"),),
  ),
)

LAG = (
  Chart(
    "Lag",
    "between sampling a token and using it, mean over tokens",
    "versions",
    (
      _train("lag/mean", "all"),
      _train("lag/in_flight_mean", "in flight"),
      _train("lag/in_queue_mean", "in queue"),
    ),
  ),
  Chart(
    "On policy",
    "tokens sampled by the version that they update",
    "share of tokens",
    (_train("on_policy_fraction", "share"),),
  ),
)

OBJECTIVE = (
  Chart(
    "Lambda",
    "mean of A - beta u, and of the target: below 0 it is sharper than exponential",
    "reward",
    (_train("lambda_hat", "of the batch"), _train("target/lambda", "of the target")),
  ),
  Chart("Temperature", "beta of the regression", "reward per nat", (_train("beta", "beta"),)),
  Chart(
    "Regimes",
    "groups whose induced target is ...",
    "share of groups",
    (
      _train("regime/positive", "pessimistic"),
      _train("regime/boundary", "exponential"),
      _train("regime/negative", "sharper"),
    ),
    STACKED,
  ),
  Chart(
    "Distance of the target",
    "KL to the sampler: of what is aimed at, and of mu e^(r/beta)",
    "nats",
    (_train("target/kl", "induced"), _train("target/kl_nominal", "nominal")),
  ),
  Chart("Clipped", "tokens past the clip that binds", "share", (_train("clip_fraction", "share"),)),
  Chart("Loss", "of the objective", "", (_train("loss", "loss"),)),
  Chart("Gradient", "global norm before clipping", "norm", (_train("grad_norm", "norm"),)),
  Chart("Advantage", "mean size, shift included", "reward", (_train("advantage/abs_mean", "|A|"),)),
  Chart(
    "Experts",
    "how routers spread the tokens",
    "times the mean",
    (_train("router/max_load", "busiest expert"),),
  ),
)

AGREEMENT = (
  Chart(
    "Mismatch",
    "|learner - sampler| log-probability of a token, same version",
    "nats",
    (_train("mismatch/max", "largest"), _train("mismatch/mean", "mean")),
    log=True,
  ),
  Chart(
    "Log-ratio",
    "policy against sampler, whole completions; shaded: 5 % to 95 %",
    "nats",
    (
      _train("log_ratio/q50", "median", "log_ratio/q05", "log_ratio/q95"),
      _train("log_ratio/mean", "mean"),
    ),
  ),
  Chart(
    "Effective sample size",
    "what importance weights would leave of the data",
    "share",
    (
      _train("log_ratio/ess_fraction", "batch, pi/mu"),
      _train("target/ess_fraction", "induced target"),
    ),
  ),
)

THROUGHPUT = (
  Chart(
    "Learner's time",
    "per step; the first is left out, it compiles",
    "seconds",
    (
      _train("seconds/step", "update"),
      _train("seconds/waiting", "waiting"),
      _train("seconds/publishing", "publishing"),
    ),
    STACKED,
    skip=1,
  ),
  Chart(
    "Learner's utilisation",
    "share of its time in which it updates",
    "share",
    (_train("learner/utilisation", "updating"), _train("mfu", "model flops, of the peak")),
    skip=1,
  ),
  Chart(
    "Beside the step",
    "next batch assembled in a thread of its own; programs compiled",
    "seconds",
    (_train("seconds/assembling", "assembling"), _train("seconds/compiling", "compiling")),
    skip=1,
  ),
  Chart(
    "Tokens per second",
    "learner: rows without padding; sampler: completions, all samplers",
    "tokens/s",
    (
      _train("learner/tokens_per_second", "learner"),
      _train("sampler/tokens_per_second", "sampler"),
    ),
    skip=1,
  ),
  Chart(
    "Samplers' waiting",
    "share of their time without anything to generate",
    "share",
    (_train("sampler/waiting", "waiting"),),
  ),
  Chart("Samplers", "heard of lately", "number", (_train("sampler/count", "samplers"),)),
  Chart(
    "Flops",
    "of the learner's model, per second of its step",
    "flop/s",
    (_train("flops_per_second", "learner"),),
    skip=1,
  ),
)

FILTERED = Chart(
  "Replaced groups",
  "for want of signal, by their completions' mean length",
  "groups per step",
  (),
  STACKED,
)
FILTERED_REWARD = Chart(
  "Their reward",
  "the one that all completions of a replaced group had, mean",
  "reward",
  (_train("filtered/reward", "reward"),),
)

# One metric a chart: every run is a line.
COMPARED = (
  Chart(
    "Held-out pass@1",
    "mean and 95 % interval over problems",
    "share solved",
    (Line(HELDOUT, "heldout/pass@1", "pass@1", "heldout/pass@1_low", "heldout/pass@1_high"),),
  ),
  Chart("Held-out greedy", "", "share solved", (Line(HELDOUT, "heldout/greedy", "greedy"),)),
  Chart(
    "Held-out pass@k",
    "k of each run's own configuration",
    "share solved",
    (Line(HELDOUT, "heldout/pass@k", "pass@k"),),
  ),
  RESULTS[1],
  Chart("Entropy", "of the policy, per completion token", "nats", (_train("entropy", "all"),)),
  RESULTS[3],
  Chart(
    "Lag",
    "between sampling a token and using it, mean over tokens",
    "versions",
    (_train("lag/mean", "all"),),
  ),
  Chart(
    "Log-ratio",
    "policy against sampler, whole completions: median",
    "nats",
    (_train("log_ratio/q50", "median"),),
  ),
  Chart("Lambda", "mean of A - beta u", "reward", (_train("lambda_hat", "lambda"),)),
  Chart(
    "Distance of the target",
    "KL of the induced target to the sampler",
    "nats",
    (_train("target/kl", "induced"),),
  ),
  Chart(
    "Effective sample size",
    "what importance weights would leave of the batch",
    "share",
    (_train("log_ratio/ess_fraction", "share"),),
  ),
  Chart("Gradient", "global norm before clipping", "norm", (_train("grad_norm", "norm"),)),
  Chart("Completions", "their mean length", "tokens", (_train("completion_tokens", "length"),)),
  Chart(
    "Mismatch",
    "|learner - sampler| log-probability of a token, largest",
    "nats",
    (_train("mismatch/max", "largest"),),
    log=True,
  ),
  Chart(
    "Learner's waiting",
    "per step, for groups",
    "seconds",
    (_train("seconds/waiting", "waiting"),),
    skip=1,
  ),
  Chart("Update", "per step", "seconds", (_train("seconds/step", "update"),), skip=1),
  Chart(
    "Samplers' tokens",
    "per second, all samplers of a run",
    "tokens/s",
    (_train("sampler/tokens_per_second", "sampler"),),
    skip=1,
  ),
  Chart(
    "Replaced groups",
    "for want of signal",
    "groups per step",
    (_train("filtered/groups", "groups"),),
  ),
)
