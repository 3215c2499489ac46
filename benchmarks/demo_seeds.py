"""What does a demo reach, and how fast, with several seeds?

Command:  python -m benchmarks.demo_seeds --seeds 0 1 2
          python -m benchmarks.demo_seeds --card=configs/demo_turns.py --seeds 1 2 3
Writes results/CARD_seeds.json and results/CARD_seeds.svg (held-out pass@1 against step).
"""

import argparse
import html
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.machine import machine
from offpolicy_rl.observe import metrics
from offpolicy_rl.report import series, svg

RESULTS = pathlib.Path(__file__).parent / "results"
_LEGEND_ROW = 15


def run(card: str, seed: int, run_dir: pathlib.Path, extra: list[str]) -> dict:
  """One whole demo in its own processes -> what it reached."""
  start = time.monotonic()
  subprocess.run(
    [
      sys.executable,
      "-m",
      "offpolicy_rl.cli.main",
      "local",
      f"--config={card}",
      f"--run_dir={run_dir}",
      f"--config.seed={seed}",
      *extra,
    ],
    check=True,
  )
  seconds = time.monotonic() - start
  rows = metrics.read(run_dir)
  heldout = [row for row in rows if row["kind"] == metrics.HELDOUT]
  train = [row for row in rows if row["kind"] == metrics.TRAIN]
  phases = {row["phase"]: row for row in heldout if row["phase"] != "during"}
  names = {"greedy": "heldout/greedy", "pass@1": "heldout/pass@1", "pass@k": "heldout/pass@k"}
  return {
    "seed": seed,
    "seconds": round(seconds, 1),
    "phases": {p: {n: round(row[key], 4) for n, key in names.items()} for p, row in phases.items()},
    "curve": [[r["step"], round(r["heldout/pass@1"], 4)] for r in heldout if r["version"] >= 0],
    "lag_mean": round(sum(r["lag/mean"] for r in train) / len(train), 2),
    "lag_max": max(r["lag/max"] for r in train),
    "mismatch_max": max(r.get("mismatch/max", 0.0) for r in train),
    "mismatch_tokens": sum(r.get("mismatch/tokens", 0) for r in train),
  }


def picture(curves: list[tuple[str, list]], unit: str = "held-out pass@1") -> str:
  """The report's chart of named curves as a file of its own: with size, background, legend."""
  found = [series.binned([series.Point(x, y, y, y) for x, y in points], 1) for _, points in curves]
  drawn = [svg.Curve(curves[n][0], s, n) for n, s in enumerate(found)]
  last = max(s.x[-1] for s in found)
  chart = svg.lines(drawn, svg.fit_axes(found, (0, last)), unit)
  style = "text { font: 11px sans-serif; fill: #66707d } .axis { stroke: #d9dee5 }"
  style += " .faint { opacity: .35 }"
  legend, bottom = [], svg.HEIGHT
  for curve in drawn:
    bottom += _LEGEND_ROW
    ink, y = svg.COLORS[curve.color], bottom - 6
    legend.append(f'<path stroke="{ink}" stroke-width="3" d="M42 {y - 4}h14"/>')
    legend.append(f'<text x="62" y="{y}">{html.escape(curve.label)}</text>')
  size = f'<svg xmlns="http://www.w3.org/2000/svg" width="630" viewBox="0 0 {svg.WIDTH} {bottom}">'
  background = f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
  inside = chart.partition(">")[2].removesuffix("</svg>")
  return "".join((size, background, inside, *legend, "</svg>"))


def main() -> None:
  """Runs the seeds one after the other and reports."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--card", default="configs/demo.py")
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  arguments, extra = parser.parse_known_args()
  with tempfile.TemporaryDirectory() as folder:
    runs = [
      run(arguments.card, seed, pathlib.Path(folder) / f"seed-{seed}", extra)
      for seed in arguments.seeds
    ]
  command = " ".join(["python -m benchmarks.demo_seeds", *sys.argv[1:]])
  found = {"machine": machine(), "command": command, "runs": runs}
  RESULTS.mkdir(exist_ok=True)
  stem = RESULTS / f"{pathlib.Path(arguments.card).stem}_seeds"
  stem.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
  curves = [(f"seed {run['seed']}", run["curve"]) for run in runs]
  stem.with_suffix(".svg").write_text(picture(curves))
  print(f"{found['machine']}")
  print("seed  seconds  pass@1 before -> after     greedy          pass@8          lag    mismatch")
  for r in runs:
    before = r["phases"].get("after warm start", r["phases"].get("before"))
    after = r["phases"]["after"]
    lag, gain = f"{r['lag_mean']}/{r['lag_max']}", after["pass@1"] - before["pass@1"]
    print(
      f"{r['seed']:4}  {r['seconds']:7}  {before['pass@1']:.3f} -> {after['pass@1']:.3f} "
      f"({gain:+.3f})  {before['greedy']:.3f} -> {after['greedy']:.3f}  "
      f"{before['pass@k']:.3f} -> {after['pass@k']:.3f}  {lag}  {r['mismatch_max']:.1e}"
    )


if __name__ == "__main__":
  main()
