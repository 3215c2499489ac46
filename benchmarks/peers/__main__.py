"""How do sampling and training compare with other systems on this machine?

Command:  make .venv-reference/.installed .venv-tunix/.installed .venv-vllm/.installed
          python -m benchmarks.peers              (40 minutes; --shape=tiny: a few)
Both sides have the same architecture with random weights in float32, the same prompts and rows, and
stay alive side by side; they work in turn, one round each. Sampling: 192 completions of ragged
lengths (one token in 40 ends one, 256 at most) in 64 rows, the peer in whole batches of 64, as its
`generate` works; vLLM refills them, too. Decoding, next to vLLM only: every row in use until the
end. Training: one update on 8 rows of 192 tokens. What was measured before for other peers and jobs
stays in results/peers.json.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

from benchmarks.machine import machine
from benchmarks.peers import work

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = HERE.parent / "results"
PEERS = {  # name -> its environment, its side
  "transformers": (ROOT / ".venv-reference", "transformers_side.py"),
  "tunix": (ROOT / ".venv-tunix", "tunix_side.py"),
  "vllm": (ROOT / ".venv-vllm", "vllm_side.py"),
}
WARM_UP = {
  "generate": 1,
  "decode": 1,
  "train": 2,
}  # rounds: compilation, and whatever is compiled again
JOBS = {
  "transformers": ("generate", "train"),
  "tunix": ("generate", "train"),
  "vllm": ("generate", "decode"),
}


class Side:
  """A program that answers requests."""

  def __init__(self, command: list[str]):
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert self._process.stdin is not None and self._process.stdout is not None
    self._requests, self._answers = self._process.stdin, self._process.stdout

  def do(self, job: str, turn: int) -> dict:
    """What `work.serve` answers."""
    print(json.dumps({"do": job, "turn": turn}), file=self._requests, flush=True)
    return json.loads(self._answers.readline())

  def end(self) -> None:
    """Frees its memory."""
    self._requests.close()
    self._process.wait()


def compare(peer: str, shape: str, job: str, rounds: int) -> dict:
  """Tokens per second of both sides in turn."""
  environment, file = PEERS[peer]
  sides = {
    "ours": Side([sys.executable, "-m", "benchmarks.peers.ours", shape, job]),
    peer: Side([str(environment / "bin" / "python"), str(HERE / file), shape, job]),
  }
  rates = {name: [] for name in sides}
  for turn in range(WARM_UP[job] + rounds):
    for name, side in sides.items():
      found = side.do(job, turn)
      rates[name].append(found["tokens"] / found["seconds"])
      peak = found["peak_mb"]
      rates.setdefault(f"{name} peak MB", []).append(peak)
  for side in sides.values():
    side.end()
  own, other = rates["ours"][WARM_UP[job] :], rates[peer][WARM_UP[job] :]
  ratios = [a / b for a, b in zip(own, other, strict=True)]
  return {
    "peer": peer,
    "shape": shape,
    "job": job,
    "tokens_per_second": {"ours": statistics.median(own), peer: statistics.median(other)},
    "ratio": statistics.median(ratios),
    "ratio_spread": [min(ratios), max(ratios)],
    "peak_mb": {name: round(rates[f"{name} peak MB"][-1]) for name in sides},
  }


def main() -> None:
  """All comparisons."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
  parser.add_argument("--jobs", nargs="+", choices=WARM_UP, default=list(WARM_UP))
  parser.add_argument("--shape", choices=work.SHAPES, default="135m")
  parser.add_argument("--rounds", type=int, default=3)
  arguments = parser.parse_args()
  for peer in arguments.peers:
    for job in (job for job in JOBS[peer] if job in arguments.jobs):
      row = compare(peer, arguments.shape, job, arguments.rounds)
      print(
        f"{job}: ours {row['tokens_per_second']['ours']:.0f} tokens/s, {peer} "
        f"{row['tokens_per_second'][peer]:.0f}; ratio {row['ratio']:.2f} "
        f"[{row['ratio_spread'][0]:.2f}, {row['ratio_spread'][1]:.2f}]; peak MB {row['peak_mb']}",
        flush=True,
      )
      if arguments.shape == "135m":
        keep(row)


def keep(row: dict) -> None:
  """In place of what was measured before of this peer and job."""
  file = RESULTS / "peers.json"
  rows = json.loads(file.read_text()) if file.exists() else []
  others = [old for old in rows if (old["peer"], old["job"]) != (row["peer"], row["job"])]
  asked = " ".join(["python -m benchmarks.peers", *sys.argv[1:]])
  rows = [*others, {"machine": machine(), "command": asked, **row}]
  file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
  main()
