"""What an accelerator computes, how fast, and whether its size shows what lag does. No download.

  python -m benchmarks.device                  everything that has no result yet: 12 minutes at most
  python -m benchmarks.device --part a b       some parts
  python -m benchmarks.device --small          all of it in tiny sizes, on a CPU too

  a  kernels, gradients, updates and sampling against the CPU's values   device_values.py
  b  the learner's MFU, decoding against the bandwidth                   device_speed.py
  c  a sampler one version behind against one that waits                 device_speed.py
  d  five objectives at two lags on long answers, seeds side by side     device_lag.py

Needs JAX, Flax, optax and NumPy, on one device; c uses a second one if there is one. Every piece (b
has two, d six: the warm start and each objective) runs in a process of its own, is ended after
three minutes, and its result is printed and kept in OUT/device.json. The same command goes on after
the last piece that is kept. A piece that failed is told and tried again next time. Exit code 1 if
one failed, is missing, or if what part a found is not within its bounds.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

RESULTS, WARM = "device.json", "warm.npz"
PIECE_SECONDS = 180
OBJECTIVES = ("grpo", "grpo_wide", "cispo", "copg", "shift")  # of device_lag.SETTINGS
PARTS = {
  "a": ("a",),
  "b": ("b/learner", "b/decoding"),
  "c": ("c",),
  "d": ("d/warm", *(f"d/{name}" for name in OBJECTIVES)),
}


def measure(piece: str, out: pathlib.Path, *, small: bool) -> dict[str, Any]:
  """The result of a piece, made in this process; its modules are loaded here."""
  if piece == "a":
    from benchmarks import device_values

    return device_values.measure(device_values.SMALL if small else device_values.Size())
  if piece[0] in "bc":
    from benchmarks import device_speed

    size = device_speed.SMALL if small else device_speed.Size()
    if piece == "b/learner":
      return device_speed.learner(size)
    if piece == "b/decoding":
      return device_speed.decoding(size)
    return device_speed.overlap(device_speed.LOOP_SMALL if small else device_speed.LoopSize())
  from benchmarks import device_lag

  study, warm = device_lag.SMALL if small else device_lag.Study(), out / WARM
  name = piece.removeprefix("d/")
  return (
    device_lag.warm_start(study, warm) if name == "warm" else device_lag.train(name, study, warm)
  )


def described(piece: str, out: pathlib.Path, *, small: bool) -> dict[str, Any]:
  """`measure` with device, versions and seconds."""
  began = time.monotonic()
  found = measure(piece, out, small=small)
  import jax

  from benchmarks.machine import machine

  about = {
    "piece": piece,
    "small": small,
    "device": jax.devices()[0].device_kind,
    "devices": len(jax.devices()),
    "jax": jax.__version__,
    "machine": machine(),
    "whole_seconds": round(time.monotonic() - began, 1),
  }
  return about | found


def kept(out: pathlib.Path, *, small: bool) -> dict[str, dict[str, Any]]:
  """{piece: its result} of this size in the folder."""
  path = out / RESULTS
  rows = json.loads(path.read_text()) if path.exists() else {}
  return {piece: row for piece, row in rows.items() if row["small"] == small}


def keep(out: pathlib.Path, row: dict[str, Any]) -> None:
  """Adds a result; results of the other size go."""
  rows = kept(out, small=row["small"]) | {row["piece"]: row}
  half = out / f"{RESULTS}.half"
  half.write_text(json.dumps(rows, indent=1) + "\n")
  half.rename(out / RESULTS)


def in_own_process(piece: str, out: pathlib.Path, *, small: bool, seconds: float) -> None:
  """Makes and keeps a piece; raises subprocess.SubprocessError if it fails or takes longer."""
  command = [sys.executable, "-m", "benchmarks.device", f"--out={out}", f"--piece={piece}"]
  compiled = {"JAX_COMPILATION_CACHE_DIR": str(out / "compiled")}
  subprocess.run(
    [*command, *(["--small"] if small else [])],
    check=True,
    timeout=seconds,
    env=compiled | dict(os.environ),
  )


def wanted(parts: list[str], out: pathlib.Path, *, small: bool) -> list[str]:
  """Pieces of the parts that are not kept; the warm start again where its file is missing."""
  there = set(kept(out, small=small))
  if not (out / WARM).exists():
    there.discard("d/warm")
  missing = [piece for part in parts for piece in PARTS[part] if piece not in there]
  return [] if missing == ["d/warm"] and "d/warm" in kept(out, small=small) else missing


def make(
  pieces: list[str], do: Callable[[str, float], None], *, minutes: float
) -> list[tuple[str, str]]:
  """Makes pieces in turn: do(piece, seconds it may take) -> (piece, why it is missing) of some.

  Without a warm start the rest of d is not tried; nothing begins when the minutes are over.
  """
  until, lost = time.monotonic() + 60 * minutes, []
  for piece in pieces:
    left = until - time.monotonic()
    if left <= 0:
      lost.append((piece, "no time left"))
    elif piece.startswith("d/") and "d/warm" in dict(lost):
      lost.append((piece, "no warm start"))
    else:
      try:
        do(piece, min(PIECE_SECONDS, left))
      except subprocess.SubprocessError as failure:
        lost.append((piece, str(failure)))
  return lost


def main() -> int:
  """Makes what is missing; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
  parser.add_argument("--small", action="store_true", help="tiny sizes, in one process")
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/device"))
  parser.add_argument("--minutes", type=float, default=12.0, help="begin nothing later")
  parser.add_argument("--piece", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  out, small = arguments.out, arguments.small
  out.mkdir(parents=True, exist_ok=True)

  def here(piece: str, _: float = 0.0) -> None:
    row = described(piece, out, small=small)
    keep(out, row)
    print(json.dumps(row), flush=True)

  if arguments.piece:
    here(arguments.piece)
    return 0
  apart = lambda piece, seconds: in_own_process(piece, out, small=small, seconds=seconds)
  pieces = wanted(arguments.part, out, small=small)
  lost = make(pieces, here if small else apart, minutes=arguments.minutes)
  for piece, why in lost:
    print(f"{piece}: {why}", file=sys.stderr)
  values = kept(out, small=small).get("a", {"within": True})
  return int(bool(lost) or not values["within"])


if __name__ == "__main__":
  sys.exit(main())
