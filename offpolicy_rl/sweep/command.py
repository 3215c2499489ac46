"""The command `sweep`: checks all runs, runs them, writes the summary."""

import argparse
import pathlib

from offpolicy_rl.config.text import ConfigError
from offpolicy_rl.sweep import running, runs, summary
from offpolicy_rl.sweep.screen import Screen
from offpolicy_rl.system import signals


def run(arguments: argparse.Namespace, assignments: list[tuple[str, str]]) -> int:
  """Returns 0 if all runs are finished, 130 if interrupted, else 1."""
  sweep, out = _sweep(arguments, assignments)
  if arguments.print:
    for one in sweep.runs:
      line = runs.arguments(sweep, one, out, role=arguments.print, samplers=arguments.samplers)
      print(runs.command(line))
    return 0
  _check_axes(arguments, sweep)
  code = 0 if arguments.summarize else _execute(arguments, sweep, out)
  print(summary.write(sweep, out, x=arguments.x, series=arguments.series))
  if code == 130:
    print("interrupted; the same command continues")
  return code


def _execute(arguments: argparse.Namespace, sweep: runs.Sweep, out: pathlib.Path) -> int:
  runs.check_data(sweep)
  with running.locked(out):
    runs.write(sweep, out)
    stop = signals.stop_event()
    status = running.execute(
      sweep,
      out,
      parallel=arguments.parallel,
      stop=stop,
      screen=Screen(arguments.parallel),
      retry_failed=arguments.retry_failed,
      samplers=arguments.samplers,
    )
  if set(status.values()) == {runs.FINISHED}:
    return 0
  return 130 if stop.is_set() else 1


def _sweep(arguments, assignments: list[tuple[str, str]]) -> tuple[runs.Sweep, pathlib.Path]:
  """Returns (the sweep, its directory)."""
  if arguments.summarize and not arguments.sweep:
    if not arguments.out:
      raise ConfigError("--out: missing, expected the directory of the sweep to summarize")
    return runs.read(pathlib.Path(arguments.out)), pathlib.Path(arguments.out)
  for flag, example in (("config", "configs/test.py"), ("sweep", "configs/sweeps/tiny.py")):
    if not getattr(arguments, flag):
      raise ConfigError(f"--{flag}: missing, expected a file such as {example}")
  sweep = runs.expand(arguments.sweep, arguments.config, assignments)
  stems = [pathlib.Path(path).stem for path in (arguments.config, arguments.sweep)]
  out = pathlib.Path(arguments.out or pathlib.Path("sweeps") / "-".join(stems))
  return runs.reconcile(sweep, out), out


def _check_axes(arguments, sweep: runs.Sweep) -> None:
  """Raises ConfigError for axes of the picture that do not differ, before the runs start."""
  differ = runs.varying(sweep.runs)
  given = [("x", arguments.x)] if arguments.x else []
  given += [("series", key) for key in (arguments.series or "").split(",") if arguments.series]
  for flag, key in given:
    if key not in differ:
      raise ConfigError(
        f"--{flag}: got {key!r}, expected a key that differs between runs: {', '.join(differ)}"
      )
