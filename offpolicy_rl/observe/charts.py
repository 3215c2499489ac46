"""How the metrics of the catalogue are drawn: figures, charts, and gauges for Prometheus."""

from typing import NamedTuple

from offpolicy_rl.observe import catalogue
from offpolicy_rl.observe.metrics import HELDOUT, TRAIN, WARM_START


class Figure(NamedTuple):
  """One of the few numbers that the terminal shows and runs are compared by."""

  label: str
  kind: str
  name: str
  format: str
  in_line: bool = False  # in the line of a step, too


FIGURES = (
  Figure("reward", TRAIN, "reward", ".3f", True),
  Figure("held-out", HELDOUT, "heldout/pass@1", ".3f", True),
  Figure("entropy", TRAIN, "entropy", ".3f", True),
  Figure("lag", TRAIN, "lag/mean", ".1f", True),
  Figure("lambda", TRAIN, "lambda_hat", ".4f"),
  Figure("log-ratio", TRAIN, "log_ratio/mean", ".3f"),
  Figure("mismatch", TRAIN, "mismatch/mean", ".1e"),
  Figure("largest", TRAIN, "mismatch/max", ".1e"),
  Figure("learner tok/s", TRAIN, "learner/tokens_per_second", ",.0f", True),
  Figure("sampler tok/s", TRAIN, "sampler/tokens_per_second", ",.0f", True),
  Figure("learner waits", TRAIN, "learner/waiting", ".0%"),
  Figure("update, s", TRAIN, "seconds/step", ".3g"),
  Figure("flop/s", TRAIN, "flops_per_second", ".1e"),
  Figure("utilisation", TRAIN, "mfu", ".1%"),
)

LINES, STACKED = "lines", "stacked"
RESULTS, LAG, OBJECTIVE, AGREEMENT, TIME = (
  "Results",
  "Lag",
  "Objective",
  "Policy against sampler",
  "Throughput and waiting",
)


class Chart(NamedTuple):
  """Metrics that are drawn together, over steps."""

  title: str
  section: str
  lines: dict[str, str]  # label -> metric; one unit
  meaning: str = ""  # "" = that of its first metric
  kind: str = TRAIN
  reported: bool = True  # on the page of one run
  compared: tuple[str, ...] = ()  # lines that are drawn where runs are compared
  gauge: str = ""  # its name in Prometheus; "" = not there
  label: str = ""  # that tells the gauge's lines apart; "" = it has the first line alone
  form: str = LINES
  log: bool = False
  skip: int = 0  # steps at the beginning: they compile, and would flatten all others
  spread: tuple[str, str] = ("", "")  # metrics that the first line is shaded between

  @property
  def metric(self) -> catalogue.Metric:
    """Of its first line."""
    return catalogue.metric(self.kind, next(iter(self.lines.values())))

  @property
  def exported(self) -> dict[str, str]:
    """Its lines in Prometheus."""
    return dict(list(self.lines.items())[: None if self.label else 1])

  @property
  def about(self) -> str:
    """What is drawn, in words."""
    return self.meaning or self.metric.meaning


CHARTS = (
  Chart(
    "Held-out accuracy",
    RESULTS,
    {"pass@1": "heldout/pass@1", "greedy": "heldout/greedy", "pass@k": "heldout/pass@k"},
    "problems that training never shows; shaded: 95 % interval of pass@1",
    kind=HELDOUT,
    compared=("pass@1", "greedy", "pass@k"),
    gauge="heldout_accuracy_ratio",
    label="measure",
    spread=("heldout/pass@1_low", "heldout/pass@1_high"),
  ),
  Chart("Reward", RESULTS, {"reward": "reward"}, compared=("reward",), gauge="reward_mean"),
  Chart(
    "Entropy",
    RESULTS,
    {"all": "entropy", "correct": "entropy_correct"},
    compared=("all",),
    gauge="entropy_nats",
    label="completions",
  ),
  Chart(
    "Groups without signal",
    RESULTS,
    {"share": "groups_without_signal"},
    compared=("share",),
    gauge="groups_without_signal_ratio",
  ),
  Chart("Completions", RESULTS, {"length": "completion_tokens"}, compared=("length",)),
  Chart("Ended by themselves", RESULTS, {"share": "finished_fraction"}),
  Chart(
    "Warm start",
    RESULTS,
    {"loss": "loss"},
    "imitation of demonstrations before step 0; it has steps of its own",
    kind=WARM_START,
  ),
  Chart(
    "Lag",
    LAG,
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
  Chart("On policy", LAG, {"share": "on_policy_fraction"}),
  Chart(
    "Lambda",
    OBJECTIVE,
    {"of the batch": "lambda_hat", "of the target": "target/lambda"},
    "mean of A - beta u, and of the target: below 0 it is sharper than exponential",
    compared=("of the batch",),
    gauge="lambda",
  ),
  Chart("Temperature", OBJECTIVE, {"beta": "beta"}),
  Chart(
    "Regimes",
    OBJECTIVE,
    {
      "pessimistic": "regime/positive",
      "exponential": "regime/boundary",
      "sharper": "regime/negative",
    },
    "groups whose induced target is ...",
    gauge="regime_ratio",
    label="regime",
    form=STACKED,
  ),
  Chart(
    "Distance of the target",
    OBJECTIVE,
    {"induced": "target/kl", "nominal": "target/kl_nominal"},
    "KL to the sampler: of what is aimed at, and of mu e^(r/beta)",
    compared=("induced",),
  ),
  Chart("Clipped", OBJECTIVE, {"share": "clip_fraction"}),
  Chart("Loss", OBJECTIVE, {"loss": "loss"}, gauge="loss"),
  Chart("Gradient", OBJECTIVE, {"norm": "grad_norm"}, compared=("norm",), gauge="gradient_norm"),
  Chart("Advantage", OBJECTIVE, {"|A|": "advantage/abs_mean"}),
  Chart("Experts", OBJECTIVE, {"busiest expert": "router/max_load"}),
  Chart(
    "Mismatch",
    AGREEMENT,
    {"max": "mismatch/max", "mean": "mismatch/mean"},
    "|learner - sampler| log-probability of a token, same version",
    compared=("max",),
    gauge="mismatch_nats",
    label="statistic",
    log=True,
  ),
  Chart(
    "Log-ratio",
    AGREEMENT,
    {"median": "log_ratio/q50", "mean": "log_ratio/mean"},
    "policy against sampler, whole completions; shaded: 5 % to 95 %",
    compared=("median",),
    spread=("log_ratio/q05", "log_ratio/q95"),
  ),
  Chart(
    "Effective sample size",
    AGREEMENT,
    {"batch, pi/mu": "log_ratio/ess_fraction", "induced target": "target/ess_fraction"},
    "what importance weights would leave of the data",
    compared=("batch, pi/mu",),
  ),
  Chart(
    "Alarms",
    AGREEMENT,
    {
      m.name.removeprefix("alarm/"): m.name for m in catalogue.ALARMS if m.name.startswith("alarm/")
    },
    "1 while a batch looks wrong",
    reported=False,
    gauge="alarm",
    label="alarm",
  ),
  Chart(
    "Learner's time",
    TIME,
    {"update": "seconds/step", "waiting": "seconds/waiting", "publishing": "seconds/publishing"},
    "per step; the first is left out, it compiles",
    compared=("waiting", "update"),
    gauge="step_seconds",
    label="part",
    form=STACKED,
    skip=1,
  ),
  Chart(
    "Learner's utilisation",
    TIME,
    {"model flops, of the peak": "mfu", "updating": "learner/utilisation"},
    "share of its time in which it updates; of the devices' peak flops, where that is known",
    gauge="mfu_ratio",
    skip=1,
  ),
  Chart("Learner waits", TIME, {"share": "learner/waiting"}, gauge="waiting_ratio", skip=1),
  Chart(
    "Beside the step",
    TIME,
    {"compiling": "seconds/compiling", "assembling": "seconds/assembling"},
    "next batch assembled in a thread of its own; programs compiled",
    gauge="compiling_seconds",
    skip=1,
  ),
  Chart(
    "Learner's tokens",
    TIME,
    {"learner": "learner/tokens_per_second"},
    gauge="tokens_per_second",
    skip=1,
  ),
  Chart(
    "Samplers' tokens",
    TIME,
    {"samplers": "sampler/tokens_per_second"},
    compared=("samplers",),
    gauge="samplers_tokens_per_second",
    skip=1,
  ),
  Chart("Samplers' waiting", TIME, {"waiting": "sampler/waiting"}),
  Chart("Samplers", TIME, {"samplers": "sampler/count"}),
  Chart("Flops", TIME, {"learner": "flops_per_second"}, gauge="flops_per_second", skip=1),
  Chart("Weights", TIME, {"bytes": "weights/bytes"}, reported=False, gauge="weights_bytes"),
  Chart(
    "Left out",
    RESULTS,
    {"unanswerable": "set_aside", "poisoned": "poisoned_groups"},
    "prompts and groups that the last step did without",
    reported=False,
    gauge="left_out",
    label="reason",
  ),
  Chart(
    "Verifier failures",
    RESULTS,
    {"completions": "verifier_failures"},
    reported=False,
    gauge="verifier_failures",
  ),
  Chart(
    "Replaced groups", RESULTS, {"groups": "filtered/groups"}, reported=False, compared=("groups",)
  ),
)
