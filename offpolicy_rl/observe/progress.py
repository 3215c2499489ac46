"""What a person sees of a run: one live line, or plain lines where there is no terminal."""

import math
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from offpolicy_rl.observe import metrics
from offpolicy_rl.system import output

PLAIN_SECONDS = 5.0  # between lines where there is no terminal
ALARM_STEPS = 20  # in a row, before an alarm is spoken of; one batch alone is noisy
_AT_ONCE = {"alarm/mismatch", "alarm/sampler"}  # but these are not
ALARMS = {
  "alarm/mismatch": "samplers and learner disagree on the log-probability of a token by more than "
  "learner.mismatch_alarm nats in the mean: every log-ratio is off by that (other kernels, a "
  "narrower dtype, int8 weights or truncated sampling; a server with old weights?)",
  "alarm/sampler": "a sampler's tokens are unlike those of the others; the table of samplers and "
  "sampler/unlike in metrics.jsonl name it",
  "alarm/lambda_negative": "lambda = mean(A - beta u) is negative: the target is sharper than "
  "exponential; lower the baseline (kappa, shift) or raise beta1 above beta",
  "alarm/memorising": "the mean log-ratio is positive on the batches trained on: the policy "
  "memorises its samples; lower kappa or the learning rate, or use fresher data",
  "verifier_failures": "the verifier fails on completions of every batch; the samplers' logs say "
  "why (raise task.verifier_seconds or task.verifier_memory_mb?)",
}


def needed(alarm: str) -> int:
  """Steps in a row before an alarm is spoken of."""
  return 1 if alarm in _AT_ONCE else ALARM_STEPS


def _known(number: float, form: str) -> str:
  return "-" if math.isnan(number) else format(number, form)


def _clock(seconds: float) -> str:
  if math.isnan(seconds):
    return "-:--"
  minutes, seconds = divmod(int(seconds), 60)
  return f"{minutes}:{seconds:02d}"


class Progress:
  """Collects the newest numbers and shows them."""

  def __init__(self, num_steps: int, console: Console | None = None):
    self._console = console or output.console()
    self._num_steps = num_steps
    self._live: Live | None = None
    self._shown = -1e9
    self._started: tuple[float, int] | None = None  # (time, step) of the first update seen
    self._heldout = float("nan")
    self._sampler_rate = float("nan")
    self._alarms = dict.fromkeys(ALARMS, 0)  # steps in a row; each is told once

  def say(self, text: str) -> None:
    """A line that stays."""
    self._console.print(Text(text))

  def heldout(self, accuracy: float) -> None:
    """Held-out pass@1 of the newest evaluation."""
    self._heldout = accuracy

  def sampler_rate(self, tokens_per_second: float) -> None:
    """Completion tokens per second of all samplers together."""
    self._sampler_rate = tokens_per_second

  def step(self, step: int, row: dict) -> None:
    """Shows a finished training step."""
    now = time.monotonic()
    if self._started is None:
      self._started = (now, step)
    self._tell_alarms(step, row)
    line = self.line(step, row, self._seconds_left(now, step))
    if self._console.is_terminal:
      if self._live is None:
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._live.start()
      self._live.update(Text(line, overflow="ellipsis", no_wrap=True))
    elif now - self._shown >= PLAIN_SECONDS or step + 1 == self._num_steps:
      self._console.print(Text(line))
      self._shown = now

  def line(self, step: int, row: dict, seconds_left: float) -> str:
    """The text of one step; what is not known (NaN) is a dash."""
    learner = metrics.pace(row)["tokens_per_second"]
    return (
      f"step {step + 1}/{self._num_steps}  left {_clock(seconds_left)}  "  # first: lines get cut
      f"reward {row['reward']:.3f}  "
      f"held-out {_known(self._heldout, '.3f')}  "
      f"entropy {row['entropy']:.3f}  lag {row['lag/mean']:.1f}  "
      f"tokens/s: learner {learner:,.0f}  sampler {_known(self._sampler_rate, ',.0f')}"
    )

  def _tell_alarms(self, step: int, row: dict) -> None:
    for name, meaning in ALARMS.items():
      steps = needed(name)
      if name not in row or self._alarms[name] >= steps:
        continue
      self._alarms[name] = self._alarms[name] + 1 if row[name] else 0
      if self._alarms[name] == steps:
        self.say(f"alarm, steps {step - steps + 2} to {step + 1}: {meaning}")

  def _seconds_left(self, now: float, step: int) -> float:
    started, first = self._started
    done, left = step - first, self._num_steps - step - 1
    if not left:
      return 0.0
    return (now - started) / done * left if done else math.nan

  def stop(self) -> None:
    """Ends the live line, leaving it on the screen."""
    if self._live is not None:
      self._live.stop()
      self._live = None
