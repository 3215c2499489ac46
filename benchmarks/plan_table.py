"""Do the Qwen3 cards fit on TPU pods, and what would their devices say to one another?

Command:  python -m benchmarks.plan_table         (needs `pip install offpolicy-rl[aot]`; an hour)
Every card is compiled by libtpu for topologies that are not there: the learner's train step over
the whole of one, and the decoding of a sampler's engine on `sampler.tensor` of its devices. Writes
results/plan_table.json, and the table in the project's README.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

RESULTS = pathlib.Path(__file__).parent / "results"
README = pathlib.Path(__file__).parent.parent / "offpolicy_rl" / "planning" / "README.md"
BEGIN, END = "<!-- plans -->\n", "<!-- end of plans -->\n"
GIB = 2**30
# Card -> (topology, mesh, microbatches), as large as a team would take for it.
CASES = {
  "gsm8k_qwen3_0_6b": [
    ("v5e:2x2", {"fsdp": 4}, 16),
    ("v5p:2x2x1", {"fsdp": 4}, 16),
    ("v6e:2x2", {"fsdp": 4}, 16),
  ],
  "gsm8k_qwen3_1_7b": [
    ("v5e:4x4", {"fsdp": 16}, 16),
    ("v5p:2x2x2", {"fsdp": 8}, 16),
    ("v6e:2x4", {"fsdp": 8}, 16),
  ],
  "gsm8k_qwen3_8b": [
    ("v5e:8x8", {"fsdp": 64}, 4),
    ("v5p:4x4x2", {"fsdp": 32}, 8),
    ("v6e:4x8", {"fsdp": 32}, 8),
  ],
  "gsm8k_qwen3_32b": [
    ("v5e:16x16", {"fsdp": 64, "tensor": 4}, 4),
    ("v5p:4x4x4", {"fsdp": 64}, 4),
    ("v6e:8x16", {"fsdp": 64, "tensor": 2}, 4),
  ],
  "gsm8k_qwen3_30b_a3b": [
    ("v5e:8x8", {"fsdp": 64}, 4),
    ("v5p:4x4x2", {"fsdp": 32}, 8),
    ("v6e:4x8", {"fsdp": 32}, 8),
  ],
}


def plan(card: str, topology: str, mesh: dict, microbatches: int) -> dict:
  """What `offpolicy-rl plan` finds, in a process of its own."""
  shape = {"data": 1, "fsdp": 1, "tensor": 1, "expert": 1} | mesh
  flags = [f"--config.mesh.{axis}={size}" for axis, size in shape.items()]
  flags.append(f"--config.learner.microbatches={microbatches}")
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / "plan.json"
    done = subprocess.run(
      [
        sys.executable,
        "-m",
        "offpolicy_rl.cli.main",
        "plan",
        f"--config=configs/{card}.py",
        f"--topology={topology}",
        f"--json={out}",
        *flags,
      ]
    )
    if done.returncode not in (0, 3):
      raise SystemExit(f"{card} on {topology}: plan failed")
    return {"card": card} | json.loads(out.read_text())


def line(found: dict) -> str:
  """A row of the table."""
  learner, *_, sampler = found["programs"]
  mesh = ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1)
  capacity = found["capacity_bytes"] / GIB
  said = sum(size for _, size in learner["traffic"].values()) / GIB
  cell = lambda program: (
    f"{program['peak_bytes'] / GIB:.1f} of {capacity:.0f}" + ("" if program["fits"] else ", **no**")
  )
  return (
    f"| [{found['card']}](configs/{found['card']}.py) | {found['topology']} | {mesh} | "
    f"{cell(learner)} | {learner['argument_bytes'] / GIB:.1f} | {learner['flops'] / 1e15:.1f} | "
    f"{said:.1f} | {cell(sampler)} x {sampler['devices']} | "
    f"{learner['compile_seconds'] + sampler['compile_seconds']:.0f} s |"
  )


def table(rows: list[dict]) -> str:
  """Markdown."""
  names = (
    "card",
    "topology",
    "mesh",
    "train step, GiB per device",
    "of it state and batch",
    "PFLOP per step",
    "GiB in collectives",
    "decoding, GiB x devices",
    "compiled in CPU",
  )
  head = f"| {' | '.join(names)} |\n{'| --- ' * len(names)}|"
  return "\n".join([head, *map(line, rows)]) + "\n"


def keep(row: dict) -> list[dict]:
  """In place of what was found before for this card and topology -> all rows, in order."""
  file = RESULTS / "plan_table.json"
  rows = json.loads(file.read_text()) if file.exists() else []
  name = lambda row: (row["card"], row["topology"])
  found = {name(old): old for old in rows} | {name(row): row}
  order = [(card, case[0]) for card in CASES for case in CASES[card]]
  rows = [found[one] for one in order if one in found]
  file.write_text(json.dumps(rows, indent=1) + "\n")
  return rows


def main() -> None:
  """All cases, or those of some cards; what was found before for the others stays."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--cards", nargs="+", choices=CASES, default=list(CASES))
  arguments = parser.parse_args()
  for card in arguments.cards:
    for case in CASES[card]:
      rows = keep(plan(card, *case))
      text = README.read_text()
      begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
      README.write_text(text[:begin] + table(rows) + text[end:])
  print(table(rows))


if __name__ == "__main__":
  main()
