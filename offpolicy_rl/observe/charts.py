"""The key metrics, the charts, and the gauges for Prometheus, made of the catalogue's metrics."""

from typing import NamedTuple

from offpolicy_rl import types
from offpolicy_rl.observe import catalogue
from offpolicy_rl.observe.metrics import HELDOUT, TRAIN, WARM_START


class KeyMetric(NamedTuple):
  """A metric that terminals and comparisons of runs show."""

  label: str
  kind: str
  name: str
  format: str
  in_line: bool = False  # also in the line of a step


KEY_METRICS = (
  KeyMetric("reward", TRAIN, "reward", ".3f", True),
  KeyMetric("held-out", HELDOUT, "heldout/pass@1", ".3f", True),
  KeyMetric("entropy", TRAIN, "entropy", ".3f", True),
  KeyMetric("lag", TRAIN, "lag/mean", ".1f", True),
  KeyMetric("lambda", TRAIN, "lambda_hat", ".4f"),
  KeyMetric("log-ratio", TRAIN, "log_ratio/mean", ".3f"),
  KeyMetric("mismatch", TRAIN, "mismatch/mean", ".1e"),
  KeyMetric("largest", TRAIN, "mismatch/max", ".1e"),
  KeyMetric("learner tok/s", TRAIN, "learner/tokens_per_second", ",.0f", True),
  KeyMetric("sampler tok/s", TRAIN, "sampler/tokens_per_second", ",.0f", True),
  KeyMetric("learner waits", TRAIN, "learner/waiting", ".0%"),
  KeyMetric("update, s", TRAIN, "seconds/step", ".3g"),
  KeyMetric("flop/s", TRAIN, "flops_per_second", ".1e"),
  KeyMetric("utilisation", TRAIN, "mfu", ".1%"),
)

RESULTS, LAG, OBJECTIVE = "Results", "Lag", "Objective"
AGREEMENT, TIME = "Policy against sampler", "Throughput and waiting"


class Chart(NamedTuple):
  """Metrics of one unit, drawn together over steps."""

  title: str
  lines: dict[str, str]  # label -> metric
  meaning: str = ""  # "" = that of its first metric
  kind: str = TRAIN
  reported: bool = True  # on the page of a run
  compared: tuple[str, ...] = ()  # lines on pages that compare runs
  gauge: str = ""  # name in Prometheus; "" = not exported
  label: str = ""  # Prometheus label of the lines; "" = only the first line is exported
  stacked: bool = False
  log: bool = False
  skip: int = 0  # first steps to leave out: they compile, and would flatten the rest
  spread: tuple[str, str] = ("", "")  # metrics between which the first line is shaded

  @property
  def metric(self) -> catalogue.Metric:
    """The metric of its first line."""
    return catalogue.metric(self.kind, next(iter(self.lines.values())))

  @property
  def exported(self) -> dict[str, str]:
    """The lines that Prometheus gets."""
    return dict(list(self.lines.items())[: None if self.label else 1])

  @property
  def about(self) -> str:
    """A description."""
    return self.meaning or self.metric.meaning


SECTIONS = {
  RESULTS: (
    Chart(
      "Held-out accuracy",
      {"pass@1": "heldout/pass@1", "greedy": "heldout/greedy", "pass@k": "heldout/pass@k"},
      "problems that training never shows; shaded: 95 % interval of pass@1",
      kind=HELDOUT,
      compared=("pass@1", "greedy", "pass@k"),
      gauge="heldout_accuracy_ratio",
      label="measure",
      spread=("heldout/pass@1_low", "heldout/pass@1_high"),
    ),
    Chart("Reward", {"reward": "reward"}, compared=("reward",), gauge="reward_mean"),
    Chart(
      "Entropy",
      {"all": "entropy", "correct": "entropy_correct"},
      compared=("all",),
      gauge="entropy_nats",
      label="completions",
    ),
    Chart(
      "Groups without signal",
      {"share": "groups_without_signal"},
      compared=("share",),
      gauge="groups_without_signal_ratio",
    ),
    Chart("Completions", {"length": "completion_tokens"}, compared=("length",)),
    Chart("Ended by themselves", {"share": "finished_fraction"}),
    Chart("Turns of an episode", {"turns": "episode/turns"}),
    Chart(
      "Ends of episodes",
      {
        "done": "episode/done",
        "out of turns": "episode/turns_limit",
        "out of tokens": "episode/tokens_limit",
        "out of time": "episode/time_limit",
        "failed": "episode/failed",
      },
      "how the episodes of a batch ended",
    ),
    Chart(
      "Warm start",
      {"loss": "loss"},
      "imitation of demonstrations before step 0, with its own steps",
      kind=WARM_START,
    ),
    Chart(
      "Left out",
      {"unanswerable": "set_aside", "poisoned": "poisoned_groups"},
      "prompts and groups left out of the last step",
      reported=False,
      gauge="left_out",
      label="reason",
    ),
    Chart(
      "Verifier failures",
      {"completions": "verifier_failures"},
      reported=False,
      gauge="verifier_failures",
    ),
    Chart("Replaced groups", {"groups": "filtered/groups"}, reported=False, compared=("groups",)),
  ),
  LAG: (
    Chart(
      "Lag",
      {
        "mean": "lag/mean",
        "max": "lag/max",
        "in_flight_mean": "lag/in_flight_mean",
        "in_queue_mean": "lag/in_queue_mean",
      },
      compared=("mean",),
      gauge="lag_versions",
      label="statistic",
    ),
    Chart("On policy", {"share": "on_policy_fraction"}),
  ),
  OBJECTIVE: (
    Chart(
      "Lambda",
      {"of the batch": "lambda_hat", "of the target": "target/lambda"},
      "mean of A - beta u, and of the target: below 0 it is sharper than exponential",
      compared=("of the batch",),
      gauge="lambda",
    ),
    Chart("Temperature", {"beta": "beta"}),
    Chart(
      "Regimes",
      {
        "pessimistic": "regime/positive",
        "exponential": "regime/boundary",
        "sharper": "regime/negative",
      },
      "groups whose induced target is ...",
      gauge="regime_ratio",
      label="regime",
      stacked=True,
    ),
    Chart(
      "Distance of the target",
      {"induced": "target/kl", "nominal": "target/kl_nominal"},
      "KL to the sampler: of the induced target, and of mu e^(r/beta)",
      compared=("induced",),
    ),
    Chart("Distance of the teacher", {"per token": "teacher/kl"}, compared=("per token",)),
    Chart("Clipped", {"share": "clip_fraction"}),
    Chart("Loss", {"loss": "loss"}, gauge="loss"),
    Chart("Gradient", {"norm": "grad_norm"}, compared=("norm",), gauge="gradient_norm"),
    Chart("Advantage", {"|A|": "advantage/abs_mean"}),
    Chart("Experts", {"busiest expert": "router/max_load"}),
  ),
  AGREEMENT: (
    Chart(
      "Mismatch",
      {"max": "mismatch/max", "mean": "mismatch/mean"},
      "|learner - sampler| log-probability of a token, same version",
      compared=("max",),
      gauge="mismatch_nats",
      label="statistic",
      log=True,
    ),
    Chart(
      "Log-ratio",
      {"median": "log_ratio/q50", "mean": "log_ratio/mean"},
      "policy against sampler, whole completions; shaded: 5 % to 95 %",
      compared=("median",),
      spread=("log_ratio/q05", "log_ratio/q95"),
    ),
    Chart(
      "Effective sample size",
      {"batch, pi/mu": "log_ratio/ess_fraction", "induced target": "target/ess_fraction"},
      "what importance weights would leave of the data",
      compared=("batch, pi/mu",),
    ),
    Chart(
      "Alarms",
      {n.removeprefix("alarm/"): n for m in catalogue.ALARMS if (n := m.name).startswith("alarm/")},
      "1 while a batch looks wrong",
      reported=False,
      gauge="alarm",
      label="alarm",
    ),
  ),
  TIME: (
    Chart(
      "Learner's time",
      {"update": "seconds/step", "waiting": "seconds/waiting", "publishing": "seconds/publishing"},
      "per step; without the first, which compiles",
      compared=("waiting", "update"),
      gauge="step_seconds",
      label="part",
      stacked=True,
      skip=1,
    ),
    Chart(
      "Learner's utilisation",
      {"model flops, of the peak": "mfu", "updating": "learner/utilisation"},
      "share of its time spent on updates; share of the devices' peak flops, if known",
      gauge="mfu_ratio",
      skip=1,
    ),
    Chart("Learner waits", {"share": "learner/waiting"}, gauge="waiting_ratio", skip=1),
    Chart(
      "Stages of a ticket",
      {stage: f"ticket/{stage}" for stage in types.STAGES},
      "where the time of a completion goes, from the queue to the end of its step",
      gauge="ticket_seconds",
      label="stage",
      stacked=True,
      skip=1,
    ),
    Chart(
      "Time of an episode",
      {
        "world": "episode/seconds_world",
        "queue": "episode/seconds_queue",
        "model": "episode/seconds_model",
      },
      "waiting for its environment, waiting for a slot, and in one",
      gauge="episode_seconds",
      label="part",
      stacked=True,
      skip=1,
    ),
    Chart(
      "Beside the step",
      {"compiling": "seconds/compiling", "assembling": "seconds/assembling"},
      "assembling the next batch in its own thread; compiling programs",
      gauge="compiling_seconds",
      skip=1,
    ),
    Chart(
      "Learner's tokens",
      {"learner": "learner/tokens_per_second"},
      gauge="tokens_per_second",
      skip=1,
    ),
    Chart(
      "Samplers' tokens",
      {"samplers": "sampler/tokens_per_second"},
      compared=("samplers",),
      gauge="samplers_tokens_per_second",
      skip=1,
    ),
    Chart("Samplers' waiting", {"waiting": "sampler/waiting"}),
    Chart("Samplers", {"samplers": "sampler/count"}),
    Chart("Flops", {"learner": "flops_per_second"}, gauge="flops_per_second", skip=1),
    Chart("Weights", {"bytes": "weights/bytes"}, reported=False, gauge="weights_bytes"),
  ),
}
CHARTS = tuple(chart for charts in SECTIONS.values() for chart in charts)
