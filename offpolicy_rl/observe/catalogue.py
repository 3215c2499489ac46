"""Every number of a run: its unit, its meaning, which way is good, its alarm. Drawn by charts.py.

The report, the terminal, Prometheus, the Grafana dashboard and the summary of a sweep are made
from these two tables. A metric that is written and not listed here makes a test fail.
"""

from typing import NamedTuple

from offpolicy_rl.observe.metrics import HELDOUT, TASK, TRAIN, WARM_START

HIGHER, LOWER = "higher is better", "lower is better"
HEARTBEAT, SWEEP = "heartbeat", "sweep"  # beside the kinds of rows: by sampler, by run of a sweep


class Metric(NamedTuple):
  """A number, by its name in metrics.jsonl."""

  name: str
  unit: str
  meaning: str
  better: str = ""  # HIGHER, LOWER, or "" where it depends
  alarm: str = ""  # advice that is given once the metric was above 0 for `alarm_steps` in a row
  alarm_steps: int = 20  # one batch alone is noisy


_TRAIN = (
  # What the policy does on the batch, before the update.
  Metric("reward", "reward", "mean over the completions of a batch", HIGHER),
  Metric("verdict", "verdict", "the verifiers' mean, without what shaping adds", HIGHER),
  Metric("entropy", "nats", "of the policy, per completion token"),
  Metric("entropy_correct", "nats", "the same, over right completions"),
  Metric("completion_tokens", "tokens", "mean length of the completions"),
  Metric("finished_fraction", "share", "completions that were not cut at the limit", HIGHER),
  Metric("groups_without_signal", "share", "groups whose completions all have one reward", LOWER),
  Metric("tokens", "tokens", "of the batch, prompts included, without padding"),
  Metric("filled_fraction", "share", "positions of the batch that are not padding", HIGHER),
  Metric(
    "verifier_failures",
    "completions",
    "of the batch, on which the verifier failed",
    LOWER,
    alarm="the verifier fails on completions of every batch; the samplers' logs say why (raise "
    "task.verifier_seconds or task.verifier_memory_mb?)",
  ),
  Metric("set_aside", "groups", "left out of the step: no sampler can answer the prompt", LOWER),
  Metric("poisoned_groups", "groups", "left out because they made the update non-finite", LOWER),
  Metric("filtered/groups", "groups", "replaced for want of signal", LOWER),
  Metric("filtered/reward", "reward", "mean verdict of the replaced groups"),
  Metric("filtered/by_length", "groups", "replaced, by mean length rounded up to a power of 2"),
  # The update.
  Metric("loss", "", "of the objective"),
  Metric("grad_norm", "norm", "global norm of the gradient, before clipping"),
  Metric("updates_skipped", "updates", "of the step, whose loss or gradient was not finite", LOWER),
  Metric("first_nonfinite_row", "row", "first completion with a logprob not finite; -1 = none"),
  Metric("advantage/abs_mean", "reward", "mean size of the advantage, shift included"),
  Metric("clip_fraction", "share", "tokens past the clip that binds"),
  Metric("beta", "reward per nat", "temperature of the regression"),
  Metric("lambda_hat", "reward", "mean of A - beta u; below 0 the target is sharper than e^(A/b)"),
  Metric("regime/statistic", "nats", "log E exp(A / beta), mean over groups"),
  Metric("regime/positive", "share", "groups whose induced target is pessimistic"),
  Metric("regime/boundary", "share", "groups whose induced target is exponential"),
  Metric("regime/negative", "share", "groups whose induced target is sharper than exponential"),
  Metric("regime/collapsed", "share", "groups whose target is all on the best completions"),
  Metric("target/lambda", "reward", "Lambert multiplier of the induced target"),
  Metric("target/kl", "nats", "KL of the induced target to the sampler"),
  Metric("target/kl_nominal", "nats", "KL of mu e^(r/beta) to the sampler"),
  Metric("target/ess_fraction", "share", "effective sample size of the induced target"),
  # Lag, and how far policy and sampler are apart.
  Metric("lag/mean", "versions", "between sampling a token and using it", LOWER),
  Metric("lag/max", "versions", "largest lag of a token", LOWER),
  Metric("lag/in_flight_mean", "versions", "between sampling a token and its group's arrival"),
  Metric("lag/in_queue_mean", "versions", "between a group's arrival and its use"),
  Metric("lag/histogram", "tokens", "by lag"),
  Metric("lag/in_flight_histogram", "tokens", "by versions from sampling to arrival"),
  Metric("lag/in_queue_histogram", "tokens", "by versions from arrival to use"),
  Metric("on_policy_fraction", "share", "tokens sampled by the version that they update", HIGHER),
  Metric("log_ratio/mean", "nats", "policy against sampler, whole completions"),
  Metric("log_ratio/max", "nats", "the largest of a completion"),
  Metric("log_ratio/q05", "nats", "5 % quantile"),
  Metric("log_ratio/q50", "nats", "median, policy against sampler, whole completions"),
  Metric("log_ratio/q95", "nats", "95 % quantile"),
  Metric("log_ratio/ess_fraction", "share", "effective sample size under importance weights"),
  Metric("mismatch/max", "nats", "largest |learner - sampler| logprob, same version", LOWER),
  Metric("mismatch/mean", "nats", "mean |learner - sampler| logprob, same version", LOWER),
  Metric("mismatch/tokens", "tokens", "that the mismatch is about"),
  # Time and work.
  Metric("seconds/waiting", "seconds", "of the learner, for groups", LOWER),
  Metric("seconds/step", "seconds", "of the update", LOWER),
  Metric("seconds/publishing", "seconds", "of handing the new version over", LOWER),
  Metric("seconds/assembling", "seconds", "of the next batch, in a thread of its own", LOWER),
  Metric("seconds/compiling", "seconds", "of compilation during the step", LOWER),
  Metric("compilations", "programs", "compiled during the step", LOWER),
  Metric("flops", "flop", "of the learner's model, for the batch"),
  Metric("flops_per_second", "flop/s", "of the learner's model, per second of its update", HIGHER),
  Metric("mfu", "share", "of the devices' peak flops, where that is known", HIGHER),
  Metric("weights/bytes", "bytes", "of one version of the weights, sent in full"),
  Metric("router/max_load", "times the mean", "tokens of the busiest expert", LOWER),
  Metric("router/worst_layer", "times the mean", "the same in the worst layer", LOWER),
  Metric("router/unused", "share", "experts without a token", LOWER),
  Metric("router/balance", "", "auxiliary loss of Switch Transformers; 1 = even", LOWER),
  Metric("router/entropy", "nats", "of the routers"),
  # The samplers together, and then one by one ({sampler: value}).
  Metric("sampler/count", "samplers", "heard of in the last ten seconds"),
  Metric("sampler/tokens_per_second", "tokens/s", "completion tokens of all samplers", HIGHER),
  Metric("sampler/waiting", "share", "of the samplers' time, with nothing to generate", LOWER),
  Metric("sampler/completions", "completions", "of each sampler in the batch"),
  Metric("sampler/reward", "reward", "mean over the completions of each sampler", HIGHER),
  Metric("sampler/verdict", "verdict", "mean over the completions of each sampler", HIGHER),
  Metric("sampler/length", "tokens", "mean over the completions of each sampler"),
  Metric("sampler/entropy", "nats", "per token of the completions of each sampler"),
  Metric("sampler/log_ratio", "nats", "mean |learner - sampler| logprob of each sampler's tokens"),
  Metric("sampler/mismatch", "nats", "the same, where the learner has the version", LOWER),
  Metric("sampler/unlike", "nats", "of the samplers that are unlike the others: how far", LOWER),
  # Alarms: 1.0 while a batch looks wrong.
  Metric(
    "alarm/mismatch",
    "",
    "sampler and learner disagree about log-probabilities",
    LOWER,
    alarm="samplers and learner disagree on the log-probability of a token by more than "
    "learner.mismatch_alarm nats in the mean: every log-ratio is off by that (other kernels, a "
    "narrower dtype, int8 weights or truncated sampling; a server with old weights?)",
    alarm_steps=1,
  ),
  Metric(
    "alarm/sampler",
    "",
    "one sampler's tokens are unlike the others'",
    LOWER,
    alarm="a sampler's tokens are unlike those of the others; the table of samplers and "
    "sampler/unlike in metrics.jsonl name it",
    alarm_steps=1,
  ),
  Metric(
    "alarm/lambda_negative",
    "",
    "lambda is negative",
    LOWER,
    alarm="lambda = mean(A - beta u) is negative: the target is sharper than exponential; lower "
    "the baseline (kappa, shift) or raise beta1 above beta",
  ),
  Metric(
    "alarm/memorising",
    "",
    "the mean log-ratio is positive",
    LOWER,
    alarm="the mean log-ratio is positive on the batches trained on: the policy memorises its "
    "samples; lower kappa or the learning rate, or use fresher data",
  ),
)
_HELDOUT = (
  Metric("phase", "", 'when: "before", "during", "after" training, "after warm start"'),
  Metric("version", "version", "that was evaluated; -1 = before the warm start"),
  Metric("heldout/greedy", "share", "of held-out problems solved greedily", HIGHER),
  Metric("heldout/pass@1", "share", "of sampled completions that are right", HIGHER),
  Metric("heldout/pass@1_stderr", "share", "standard error of pass@1 over problems"),
  Metric("heldout/pass@k", "share", "of problems solved by one of k samples", HIGHER),
  Metric("heldout/k", "samples", "per problem"),
  Metric("heldout/problems", "problems", "that were asked"),
  Metric("heldout/unanswered", "problems", "that no sampler could answer", LOWER),
  Metric("heldout/verifier_failures", "completions", "on which the verifier failed", LOWER),
)
_HEARTBEAT = (
  Metric("version", "version", "of the weights"),
  Metric("tokens_per_second", "tokens/s", "completion tokens", HIGHER),
  Metric("slots", "completions", "decoded side by side at most"),
  Metric("slots_busy", "completions", "under way"),
  Metric("groups", "groups", "pushed since the sampler's start"),
  Metric("waiting", "share", "of its time, with nothing to generate", LOWER),
)
_TASK = tuple(
  Metric(f"{of}prompts{what}", "prompts", f"{meaning}, {which}")
  for of, which in (("", "training"), ("heldout_", "held-out"))
  for what, meaning in (
    ("", "used"),
    ("_too_long", "longer than task.max_prompt_tokens"),
    ("_left_out", "left out: unusable rows, refused by the template"),
  )
)
METRICS: dict[str, dict[str, Metric]] = {
  kind: {metric.name: metric for metric in metrics}
  for kind, metrics in {
    TRAIN: _TRAIN,
    HELDOUT: _HELDOUT,
    TASK: _TASK,
    WARM_START: (Metric("loss", "nats", "per demonstration token", LOWER),),
    HEARTBEAT: _HEARTBEAT,
    SWEEP: (
      Metric("final", "share", "held-out pass@1 after the last step", HIGHER),
      Metric("mean", "share", "held-out pass@1, mean over the run from version 0 on", HIGHER),
      Metric("entropy", "nats", "per completion token, mean of the last 20 steps"),
      Metric("steps_per_hour", "steps/h", "without the first step, which compiles", HIGHER),
    ),
  }.items()
}
# Not written: `metrics.derived` makes them of a row of training, report/runs.py of an evaluation.
DERIVED = {
  TRAIN: {
    m.name: m
    for m in (
      Metric("learner/seconds", "seconds", "of a step: waiting, update, publishing", LOWER),
      Metric("learner/tokens_per_second", "tokens/s", "trained on, prompts included", HIGHER),
      Metric("learner/waiting", "share", "of a step's time, spent waiting for groups", LOWER),
      Metric("learner/utilisation", "share", "of a step's time, spent on the update", HIGHER),
    )
  },
  HELDOUT: {
    m.name: m
    for m in (
      Metric("heldout/pass@1_low", "share", "lower end of the 95 % interval of pass@1"),
      Metric("heldout/pass@1_high", "share", "upper end of the 95 % interval of pass@1"),
    )
  },
}
ALARMS = tuple(metric for metric in _TRAIN if metric.alarm)


def metric(kind: str, name: str) -> Metric:
  """The entry of a metric, derived or not; filtered/length/N is a part of filtered/by_length."""
  if name.startswith("filtered/length/"):
    name = "filtered/by_length"
  return METRICS[kind].get(name) or DERIVED[kind][name]
