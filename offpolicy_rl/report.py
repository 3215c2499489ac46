"""One self-contained HTML file about a run: curves and a few completions. No network, no script."""

import html
import json
import math
import pathlib
from collections.abc import Sequence

from offpolicy_rl import metrics as metrics_lib

_COLORS = ("#3266ad", "#c4622d", "#3d8a52", "#8a5aa8")
_WIDTH, _HEIGHT = 420, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 26

# Charts: title, what it tells, (row kind, metric name, label) per line.
_CHARTS = (
  ("Held-out accuracy", "share of held-out problems solved", (
    ("heldout", "heldout/pass@1", "pass@1"),
    ("heldout", "heldout/greedy", "greedy"),
    ("heldout", "heldout/pass@k", "pass@k"))),
  ("Reward", "mean over the completions of a batch", (("train", "reward", "reward"),)),
  ("Groups without signal", "all their completions have the same reward", (
    ("train", "groups_without_signal", "share of the batch"),)),
  ("Replaced groups", "per step, for want of signal", (("train", "filtered/groups", "replaced"),)),
  ("Entropy", "nats per completion token", (
    ("train", "entropy", "all"),
    ("train", "entropy_correct", "of right completions"))),
  ("Lag", "versions between sampling and use, mean over tokens", (
    ("train", "lag/mean", "all"),
    ("train", "lag/in_flight_mean", "in flight"),
    ("train", "lag/in_queue_mean", "in queue"))),
  ("Log-ratio", "nats per completion, policy against sampler: mean, and 5 %, 95 % quantiles", (
    ("train", "log_ratio/mean", "mean"),
    ("train", "log_ratio/q05", "5 %"),
    ("train", "log_ratio/q95", "95 %"))),
  ("Distance of the target", "KL to the sampler, nats, mean over groups", (
    ("train", "target/kl", "induced"),
    ("train", "target/kl_nominal", "nominal (exponential)"))),
  ("Regimes", "share of groups whose induced target is", (
    ("train", "regime/positive", "pessimistic"),
    ("train", "regime/boundary", "exponential"),
    ("train", "regime/negative", "sharper"))),
  ("Lambda", "mean of A - beta u; below 0 the target is sharper than exponential", (
    ("train", "lambda_hat", "lambda"),)),
  ("Effective sample size", "share of the batch, weights pi/mu", (
    ("train", "log_ratio/ess_fraction", "share"),)),
  ("Logprob mismatch", "largest |learner - sampler| of one token, same version, nats", (
    ("train", "mismatch/max", "max"),)),
  ("Learner's time", "seconds per step, the first left out (it compiles)", (
    ("train", "seconds/step", "update"),
    ("train", "seconds/waiting", "waiting"),
    ("train", "seconds/publishing", "publishing"))),
)  # fmt: skip

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #66707d; --line: #d9dee5;
  --card: #ffffff; --page: #f5f6f8; --good: #2f7d46; --bad: #a8452f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --soft: #9aa5b3; --line: #343c47;
    --card: #1c222b; --page: #13181f; --good: #7cc690; --bad: #e08a72; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  margin: 0 auto; max-width: 1360px; padding: 24px; }
h1 { font-size: 22px; margin: 0 0 4px; }
h2 { font-size: 17px; margin: 32px 0 12px; }
.soft { color: var(--soft); }
.grid { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); }
figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  margin: 0; padding: 12px; }
figcaption { font-size: 13px; color: var(--soft); }
figcaption b { display: block; color: var(--ink); font-size: 15px; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.axis { stroke: var(--line); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); font-size: 14px; }
th, td { border: 1px solid var(--line); padding: 5px 10px; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
code { font: 13px ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.key { display: inline-block; margin-right: 12px; }
.key i { display: inline-block; width: 14px; height: 3px; vertical-align: middle;
  margin-right: 5px; }
"""


def write(run_dir: pathlib.Path) -> pathlib.Path:
  """Reads a run's files and writes `report.html` beside them; works on an unfinished run, too."""
  run_dir = pathlib.Path(run_dir)
  rows = metrics_lib.read(run_dir)
  config = json.loads((run_dir / "config.json").read_text())
  every_key = html.escape(json.dumps(config, indent=2))
  samples = _read_samples(run_dir)
  parts = [
    f"<h1>{html.escape(run_dir.name)}</h1>",
    f"<p class=soft>{html.escape(_summary(config, rows))}</p>",
    "<h2>Phases</h2>", _phases(rows),
    "<h2>Curves</h2><p class=soft>Horizontal axis: step of reinforcement learning.</p>",
    f"<div class=grid>{''.join(_figure(*chart, rows) for chart in _CHARTS)}</div>",
    "<h2>Sampled completions</h2>", _completions(samples),
    "<h2>Configuration</h2>",
    f"<details><summary>every key</summary><code>{every_key}</code></details>",
  ]  # fmt: skip
  page = (
    f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(run_dir.name)}</title>"
    f'<meta name=viewport content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
    f"<body>{''.join(parts)}</body></html>"
  )
  path = run_dir / "report.html"
  path.write_text(page)
  return path


def _read_samples(run_dir: pathlib.Path) -> list[dict]:
  path = run_dir / "completions.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _summary(config: dict, rows: list[dict]) -> str:
  steps = sum(row["kind"] == metrics_lib.TRAIN for row in rows)
  lag, learner = config["lag"], config["learner"]
  return (
    f"task {config['task']['name']}, objective {config['objective']['name']}, "
    f"lag {lag['mode']} {lag['max_lag']}, {steps} steps of {learner['prompts_per_step']} prompts "
    f"x {learner['group_size']} completions, seed {config['seed']}"
  )


def _phases(rows: list[dict]) -> str:
  """Held-out accuracy before and after each phase."""
  found = [row for row in rows if row["kind"] == metrics_lib.HELDOUT and row["phase"] != "during"]
  if not found:
    return "<p class=soft>No evaluation has finished.</p>"
  names = [key for key in found[-1] if key.startswith("heldout/") and "stderr" not in key]
  head = "".join(f"<th>{html.escape(name.removeprefix('heldout/'))}" for name in names)
  body = "".join(
    f"<tr><td>{html.escape(row['phase'])}<td class=number>{row['version']}"
    + "".join(f"<td class=number>{row.get(name, math.nan):.3g}" for name in names)
    for row in found
  )
  return f"<div class=scroll><table><tr><th>phase<th>version{head}{body}</table></div>"


def _figure(title: str, meaning: str, lines, rows: list[dict]) -> str:
  series = []
  for kind, name, label in lines:
    # Before the warm start is also step 0, with version -1; the curve begins after it.
    points = [
      (row["step"], row[name])
      for row in rows
      if row["kind"] == kind
      and name in row
      and row.get("version", 0) >= 0
      and math.isfinite(row[name])
    ]
    if name.startswith("seconds/"):
      points = points[1:]  # the first step compiles and would flatten all others
    if points:
      series.append((label, points))
  if not series:
    return ""
  keys = "".join(
    f'<span class=key><i style="background:{color}"></i>{html.escape(label)}</span>'
    for (label, _), color in zip(series, _COLORS, strict=False)
  )
  return (
    f"<figure><figcaption><b>{html.escape(title)}</b>{html.escape(meaning)}<br>{keys}</figcaption>"
    f"{chart(series)}</figure>"
  )


def chart(series: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
  """Lines of (x, y) points as inline SVG, with round ticks."""
  xs = [x for _, points in series for x, _ in points]
  ys = [y for _, points in series for _, y in points]
  x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
  ticks = _ticks(min(ys), max(ys))
  y_low, y_high = ticks[0], ticks[-1]
  place_x = lambda x: _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
  place_y = lambda y: (
    _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
  )
  parts = []
  for tick in ticks:
    y = f"{place_y(tick):.1f}"
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
    parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end">{tick:g}</text>')
  for x, anchor in ((x_low, "start"), (x_high, "end")):
    at = f'x="{place_x(x):.1f}" y="{_HEIGHT - 8}"'
    parts.append(f'<text {at} text-anchor="{anchor}">{x:g}</text>')
  for (label, points), color in zip(series, _COLORS, strict=False):
    path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
    title = f"<title>{html.escape(label)}: last {points[-1][1]:.4g}</title>"
    line = f'fill="none" stroke="{color}" stroke-width="1.6" points="{path}"'
    parts.append(f"<polyline {line}>{title}</polyline>")
    if len(points) < 40:
      for x, y in points:
        at = f'cx="{place_x(x):.1f}" cy="{place_y(y):.1f}"'
        parts.append(f'<circle r="2.4" fill="{color}" {at}/>')
  return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
  """About `count` round numbers whose first and last enclose [low, high]."""
  span = high - low or abs(high) or 1.0
  raw = span / count
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _completions(samples: list[dict]) -> str:
  """Groups as they were sampled, early and late."""
  if not samples:
    return "<p class=soft>None were recorded.</p>"
  shown = samples[:2] + samples[-4:] if len(samples) > 6 else samples
  body = []
  for sample in shown:
    answers = ", ".join(
      f"<span class={'good' if c['reward'] == 1 else 'bad'}>"
      f"<code>{html.escape(c['text'])}</code> ({c['reward']:g})</span>"
      for c in sample["completions"]
    )
    body.append(
      f"<tr><td class=number>{sample['step']}<td class=number>{sample['version']}"
      f"<td><code>{html.escape(sample['prompt'])}</code><td>{answers}"
    )
  head = "<tr><th>step<th>version<th>prompt<th>completions (reward)"
  return f"<div class=scroll><table>{head}{''.join(body)}</table></div>"
