"""Every metric of a run: its unit, its meaning, which way is good, its alarm.

The report, the terminal, Prometheus, the Grafana dashboard and the summary of a sweep are made
from these tables. A test fails if a metric is written but not listed here. charts.py draws them.
"""

from typing import NamedTuple

from offpolicy_rl.observe.metrics import HELDOUT, TASK, TRAIN, WARM_START

HIGHER, LOWER = "higher is better", "lower is better"
HEARTBEAT, SWEEP = "heartbeat", "sweep"  # kinds besides those of rows: per sampler, per run


class Metric(NamedTuple):
  """A metric; `name` is its name in metrics.jsonl."""

  name: str
  unit: str
  meaning: str
  better: str = ""  # HIGHER, LOWER, or "" if it depends
  alarm: str = ""  # advice shown once the metric was above 0 for `alarm_steps` steps in a row
  alarm_steps: int = 20  # a single batch is noisy


_TRAIN = (
  # The policy on the batch, before the update.
  Metric("reward", "reward", "mean over the completions of a batch", HIGHER),
  Metric("verdict", "verdict", "the verifiers' mean, without what shaping adds", HIGHER),
  Metric("entropy", "nats", "of the policy, per completion token"),
  Metric("entropy_correct", "nats", "of the policy, per token of right completions"),
  Metric("completion_tokens", "tokens", "mean length of the completions"),
  Metric("finished_fraction", "share", "completions that ended before the limit", HIGHER),
  Metric("groups_without_signal", "share", "groups whose verdicts are all equal", LOWER),
  Metric("tokens", "tokens", "in the batch, with prompts, without padding"),
  Metric("filled_fraction", "share", "positions of the batch that are not padding", HIGHER),
  Metric(
    "verifier_failures",
    "completions",
    "of the batch, on which the verifier or environment failed",
    LOWER,
    alarm="the verifier or environment fails on completions of every batch; the samplers' logs say "
    "why (raise its limits of time or memory?)",
  ),
  Metric("rubric", "score", "of each part of judge.rubric, mean over a batch", HIGHER),
  # Episodes of several turns, in runs with an environment.
  Metric("episode/turns", "turns", "of the policy, mean over the episodes of a batch"),
  Metric("episode/environment_tokens", "tokens", "of the environment, mean over the episodes"),
  Metric("episode/done", "share", "of episodes that their environment ended", HIGHER),
  Metric("episode/turns_limit", "share", "of episodes that ran out of turns"),
  Metric("episode/tokens_limit", "share", "of episodes that ran out of tokens", LOWER),
  Metric("episode/time_limit", "share", "of episodes whose environment ran out of time", LOWER),
  Metric("episode/failed", "share", "of episodes whose environment failed otherwise", LOWER),
  Metric("episode/seconds_world", "seconds", "of an episode, waiting for its environment", LOWER),
  Metric("episode/seconds_queue", "seconds", "of an episode, waiting for a slot", LOWER),
  Metric("episode/seconds_model", "seconds", "of an episode, in a slot", LOWER),
  Metric("set_aside", "groups", "left out because no sampler can answer the prompt", LOWER),
  Metric("poisoned_groups", "groups", "left out because they made the update non-finite", LOWER),
  Metric("filtered/groups", "groups", "replaced because all their rewards are equal", LOWER),
  Metric("filtered/reward", "reward", "mean verdict of the replaced groups"),
  Metric("filtered/by_length", "groups", "replaced, by mean length rounded up to a power of 2"),
  # The update.
  Metric("loss", "", "of the objective"),
  Metric("grad_norm", "norm", "global norm of the gradient, before clipping"),
  Metric("updates_skipped", "updates", "left out because loss or gradient is not finite", LOWER),
  Metric("first_nonfinite_row", "row", "first completion with a non-finite logprob; -1 = none"),
  Metric("advantage/abs_mean", "reward", "mean size of the advantage, shift included"),
  Metric("clip_fraction", "share", "tokens past the clip that binds"),
  Metric("candidate_mass", "share", "the sampler's probability of its recorded likeliest tokens"),
  Metric("teacher/kl", "nats", "of the sampler's policy to the teacher, mean over tokens", LOWER),
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
  # Lag, and distance of policy and sampler.
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
  Metric("mismatch/tokens", "tokens", "compared for the mismatch"),
  # Time and work.
  Metric("seconds/waiting", "seconds", "of the learner, for groups", LOWER),
  Metric("seconds/step", "seconds", "of the update", LOWER),
  Metric("seconds/publishing", "seconds", "of publishing the new version", LOWER),
  Metric("seconds/assembling", "seconds", "of the next batch, in its own thread", LOWER),
  Metric("seconds/compiling", "seconds", "of compilation during the step", LOWER),
  Metric("compilations", "programs", "compiled during the step", LOWER),
  Metric("flops", "flop", "of policy, proximal policy, reference and teacher, for the batch"),
  Metric("flops_per_second", "flop/s", "of all models of the update, per second of it", HIGHER),
  Metric("mfu", "share", "of the devices' peak flops, if known", HIGHER),
  Metric("weights/bytes", "bytes", "of one version of the weights, sent in full"),
  Metric("router/max_load", "times the mean", "tokens of the busiest expert", LOWER),
  Metric("router/worst_layer", "times the mean", "router/max_load of the worst layer", LOWER),
  Metric("router/unused", "share", "experts without a token", LOWER),
  Metric("router/balance", "", "auxiliary loss of Switch Transformers; 1 = even", LOWER),
  Metric("router/entropy", "nats", "of the routers"),
  # Stages of a ticket: means over the groups of the batch.
  Metric("ticket/lease", "seconds", "in the queue, until a sampler has the ticket"),
  Metric("ticket/weights", "seconds", "at a sampler, until it has the weights", LOWER),
  Metric("ticket/prefill", "seconds", "from there to a slot; the prompt is computed", LOWER),
  Metric("ticket/decode", "seconds", "from the first slot to the group's last token", LOWER),
  Metric("ticket/verifier", "seconds", "from there to the last verdict, waiting included", LOWER),
  Metric("ticket/push", "seconds", "from there to the learner's disk", LOWER),
  Metric("ticket/queue", "seconds", "from there to the beginning of its step"),
  Metric("ticket/use", "seconds", "the step that uses it, published version included", LOWER),
  # All samplers together, then by sampler ({sampler: value}).
  Metric("sampler/count", "samplers", "with a heartbeat in the last ten seconds"),
  Metric("sampler/tokens_per_second", "tokens/s", "completion tokens of all samplers", HIGHER),
  Metric("sampler/waiting", "share", "of the samplers' time, spent idle", LOWER),
  Metric("sampler/rates", "tokens/s", "completion tokens of each sampler", HIGHER),
  Metric("sampler/completions", "completions", "of each sampler in the batch"),
  Metric("sampler/reward", "reward", "mean over the completions of each sampler", HIGHER),
  Metric("sampler/verdict", "verdict", "mean over the completions of each sampler", HIGHER),
  Metric("sampler/length", "tokens", "mean over the completions of each sampler"),
  Metric("sampler/entropy", "nats", "per token of the completions of each sampler"),
  Metric("sampler/seconds_world", "seconds", "episode/seconds_world of each sampler", LOWER),
  Metric("sampler/seconds_queue", "seconds", "episode/seconds_queue of each sampler", LOWER),
  Metric("sampler/seconds_model", "seconds", "episode/seconds_model of each sampler", LOWER),
  Metric("sampler/log_ratio", "nats", "mean |learner - sampler| logprob of each sampler's tokens"),
  Metric("sampler/mismatch", "nats", "mismatch/mean of each sampler's tokens", LOWER),
  Metric("sampler/unlike", "nats", "distance of samplers that are unlike the others", LOWER),
  # Alarms: 1.0 while a batch looks wrong.
  Metric(
    "alarm/mismatch",
    "",
    "sampler and learner disagree about log-probabilities",
    LOWER,
    alarm="samplers and learner disagree on the log-probability of a token by more than "
    "learner.mismatch_alarm nats in the mean, and every log-ratio is off by that (other kernels, a "
    "narrower dtype, int8 weights, truncated sampling, or a server with old weights?)",
    alarm_steps=1,
  ),
  Metric(
    "alarm/sampler",
    "",
    "one sampler's tokens are unlike the others'",
    LOWER,
    alarm="a sampler's tokens are unlike those of the others; see the table of samplers, or "
    "sampler/unlike in metrics.jsonl",
    alarm_steps=1,
  ),
  Metric(
    "alarm/nothing_judged",
    "",
    "the verifier or environment failed on all completions",
    LOWER,
    alarm="no completion could be judged: verifier, judge or environment failed on all, so nothing "
    "can be learned from them; the samplers' logs (sampler-*.log in the run directory) say why",
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
    "the mean log-ratio is positive, by more than two standard errors",
    LOWER,
    alarm="the mean log-ratio is positive on the training batches: the policy memorises its "
    "samples; lower kappa or the learning rate, or use fresher data",
  ),
)
_HELDOUT = (
  Metric("phase", "", 'when: "before", "during", "after" training, "after warm start"'),
  Metric("version", "version", "that was evaluated; -1 = before the warm start"),
  Metric("heldout/greedy", "share", "of held-out problems solved greedily", HIGHER),
  Metric("heldout/pass@1", "share", "of sampled completions that are right", HIGHER),
  Metric("heldout/pass@1/TASK", "share", "pass@1 on the problems of a mixture's member", HIGHER),
  Metric("heldout/pass@1_stderr", "share", "standard error of pass@1 over problems"),
  Metric("heldout/pass@k", "share", "of problems solved by one of k samples", HIGHER),
  Metric("heldout/k", "samples", "per problem"),
  Metric("heldout/problems", "problems", "evaluated"),
  Metric("heldout/unanswered", "problems", "that no sampler could answer", LOWER),
  Metric("heldout/verifier_failures", "completions", "on which the verifier failed", LOWER),
)
_HEARTBEAT = (
  Metric("version", "version", "of the weights"),
  Metric("tokens_per_second", "tokens/s", "completion tokens", HIGHER),
  Metric("slots", "completions", "that it can decode at the same time"),
  Metric("slots_busy", "completions", "being decoded"),
  Metric("groups", "groups", "pushed since the sampler's start"),
  Metric("waiting", "share", "of its time, spent idle", LOWER),
  Metric("restarts", "processes", "that had its name before it", LOWER),
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
# `metrics.derived` computes those of training, report/runs.py those of evaluations.
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
  """The entry of a metric or derived metric; filtered/length/N is part of filtered/by_length."""
  if name.startswith("filtered/length/"):
    name = "filtered/by_length"
  if name.startswith("heldout/pass@1/"):
    name = "heldout/pass@1/TASK"
  return METRICS[kind].get(name) or DERIVED[kind][name]
