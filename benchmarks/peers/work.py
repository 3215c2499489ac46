"""What both sides of a comparison do. Plain Python and numpy: peers have environments of their own.

A side is a program that reads one request per line and answers with one line of JSON:
  {"do": "generate", "turn": 3}  -> {"seconds": ..., "tokens": ...}   completions of that turn
  {"do": "decode", "turn": 3}    -> the same, as many completions as slots, `FULL` tokens each
  {"do": "train", "turn": 3}     -> {"seconds": ..., "tokens": ...}   one update
The first request of a kind compiles, or whatever takes its place.
"""

import json
import os
import sys
import time

import numpy as np

SHAPES = {  # of Llama: SmolLM2's, and a small one
  "135m": {
    "layers": 30,
    "width": 576,
    "heads": 9,
    "kv_heads": 3,
    "mlp": 1536,
    "vocabulary": 49_152,
  },
  "tiny": {"layers": 4, "width": 128, "heads": 4, "kv_heads": 2, "mlp": 384, "vocabulary": 4_096},
}
PROMPT, MOST = 64, 256  # tokens of a prompt, of a completion at most
GROUPS, GROUP_SIZE, SLOTS = 24, 8, 64  # completions per turn: 192, in 64 rows at a time
ONE_IN = 40  # tokens that end a completion: lengths are ragged, about 40 in the mean
FULL = 128  # tokens of each completion where all slots are in use throughout
ROWS, COLUMNS = 8, 192  # of a training batch, of prompts and completions together


def ends(vocabulary: int) -> list[int]:
  """The tokens that end a completion: with random weights, one in `ONE_IN`."""
  return list(range(vocabulary // ONE_IN))


def prompts(vocabulary: int, turn: int) -> np.ndarray:
  """int32 [groups, prompt tokens], the same on both sides; of turn 0, which warms up, few."""
  made = np.random.default_rng(turn).integers(0, vocabulary, (GROUPS, PROMPT)).astype(np.int32)
  return made if turn else filling(made)


def filling(prompts: np.ndarray) -> np.ndarray:
  """Those whose completions take all slots once."""
  return prompts[: SLOTS // GROUP_SIZE]


def rows(vocabulary: int, turn: int) -> np.ndarray:
  """int32 [rows, columns] of a training batch."""
  rng = np.random.default_rng(1000 + turn)
  return rng.integers(0, vocabulary, (ROWS, COLUMNS)).astype(np.int32)


def peak_mb() -> float:
  """The most memory that this process ever held (Linux)."""
  with open("/proc/self/status") as status:
    return int(status.read().split("VmHWM:")[1].split()[0]) / 1e3


def serve(jobs: dict) -> None:
  """Answers requests: {name: function of the turn -> tokens that it worked on}."""
  answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr  # libraries print what they like
  for line in sys.stdin:
    request = json.loads(line)
    started = time.perf_counter()
    tokens = jobs[request["do"]](request["turn"])
    seconds = time.perf_counter() - started
    answers.write(json.dumps({"seconds": seconds, "tokens": tokens, "peak_mb": peak_mb()}) + "\n")
    answers.flush()
