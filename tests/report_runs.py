"""Run directories as the learner leaves them, for the tests of the report."""

import json

from offpolicy_rl.observe import metrics

CONFIG = {
  "task": {"name": "<task>"},
  "objective": {"name": "beta_shift"},
  "seed": 1,
  "lag": {"mode": "fixed", "max_lag": 3},
  "learner": {"prompts_per_step": 2, "group_size": 4, "steps": 40},
}
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&amp;'\""


def train_row(step: int, **changes) -> dict:
  """What a step writes, in part; `/` of a name is `__` here."""
  row = {
    "reward": step / 100,
    "entropy": 0.25,
    "lag/mean": 2.0,
    "lag/max": 3,
    "tokens": 600,
    "lag/in_flight_histogram": {"0": 30, "1": 10},
    "lag/in_queue_histogram": {"2": 40},
    "seconds/waiting": 0.1,
    "seconds/step": 0.3,
    "seconds/publishing": 0.0,
    "regime/positive": 0.75,
    "regime/boundary": 0.25,
    "regime/negative": 0.0,
    "log_ratio/mean": -0.1,
    "log_ratio/q05": -1.0,
    "log_ratio/q50": -0.05,
    "log_ratio/q95": 0.5,
    "filtered/groups": 0,
    "filtered/reward": 0.0,
    "filtered/by_length": {},
  }
  return row | {name.replace("__", "/"): value for name, value in changes.items()}


def evaluation(phase: str, version: int, accuracy: float) -> dict:
  """A row of a held-out evaluation."""
  return {
    "phase": phase,
    "version": version,
    "heldout/pass@1": accuracy,
    "heldout/greedy": accuracy,
    "heldout/pass@1_stderr": 0.01,
    "heldout/pass@k": min(1.0, accuracy + 0.1),
    "heldout/k": 4,
    "heldout/problems": 64,
  }


def sample(step: int, *texts: str, tokens: int = 0) -> dict:
  """A recorded group; each completion has `tokens` further ones."""
  completions = []
  for number, text in enumerate(texts):
    pieces = [text, *(f"t{i} " for i in range(tokens)), "<eos>"]
    half = len(pieces) // 2
    completions.append(
      {
        "text": "".join(pieces[:-1]),
        "reward": float(number == 0),
        "finished": True,
        "pieces": pieces,
        "versions": [[step, half], [step + 1, len(pieces) - half]],
        "sampler_logprobs": [-0.5] * len(pieces),
        "log_ratios": [0.25, *[-0.125] * (tokens + 1)],
      }
    )
  return {
    "step": step,
    "version": step,
    "arrival": step,
    "prompt": f"prompt of {step} {ATTACK}",
    "completions": completions,
  }


def episode(step: int, **changes) -> dict:
  """A recorded group of one episode: three turns, two of which call tools; its context goes back.

  `changes`: of the completion.
  """
  spans = [
    ([step - 2] * 2 + [step - 1] * 2, ["I add.\n", "<tool_call>", "add", "</tool_call>"]),
    ([None] * 3, ["<|im_end|>", ATTACK, "\n"]),
    ([step - 1] * 2, ['{"name": "look", "parameters": {}}', "<|im_end|>"]),
    ([None] * 2, ["x" * 300, " two\nlines "]),
    ([step], ["3"]),
  ]
  versions = [version for span, _ in spans for version in span]
  pieces = [piece for _, span in spans for piece in span]
  completion = {
    "text": "".join(pieces),
    "reward": 0.5,
    "finished": True,
    "pieces": pieces,
    "versions": [[version, 1] for version in versions],
    "sampler_logprobs": [0.0 if version is None else -0.5 for version in versions],
    "log_ratios": [0.0 if version is None else 0.25 for version in versions],
    "ended": "done",
    "turn_rewards": [0.0, -0.5, 1.0],
    "rewinds": [[9, 4]],
  }
  return sample(step) | {"completions": [completion | changes]}


def write(run_dir, *, config=None, train=(), heldout=(), samples=(), others=()):
  """Fills a directory; `train`, `heldout`: (step, row), `others`: (kind, step, row)."""
  run_dir.mkdir(exist_ok=True)
  (run_dir / "config.json").write_text(json.dumps(config or CONFIG))
  rows = [
    *others,
    *((metrics.TRAIN, *row) for row in train),
    *((metrics.HELDOUT, *row) for row in heldout),
  ]
  lines = [json.dumps({"kind": kind, "step": step, **row}) for kind, step, row in rows]
  (run_dir / metrics.FILE).write_text("".join(line + "\n" for line in lines))
  lines = [json.dumps(row) for row in samples]
  (run_dir / "completions.jsonl").write_text("".join(line + "\n" for line in lines))
  return run_dir
