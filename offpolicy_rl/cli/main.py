"""Off-policy reinforcement learning of language models: trains, samples, evaluates, compares.

  offpolicy-rl local   --config=configs/demo.py            a learner and a sampler on this machine
  offpolicy-rl local   --replay=RUN/lag_schedule.jsonl     repeats an asynchronous run, to the bit
  offpolicy-rl learner --config=configs/demo.py            only the learner; prints its address
  offpolicy-rl sampler --learner=HOST:PORT                 only a sampler; the learner configures it
  offpolicy-rl watch   RUN|HOST:PORT                       shows a live run, here or on another host
  offpolicy-rl sweep   --config=... --sweep=FILE.py        many runs of a card, and their summary
  offpolicy-rl eval    --run_dir=RUN --k=1,4               greedy accuracy, pass@k, majority vote
  offpolicy-rl serve   --run_dir=RUN                       chat with a policy by OpenAI's interface
  offpolicy-rl new     NAME                                a card, task and verifier to start from
  offpolicy-rl check   --config=...                        reads all prompts; lists unusable ones
  offpolicy-rl plan    --config=... --topology=v5e:4x4     says whether a card fits on a TPU pod
  offpolicy-rl report  --run_dir=RUN [--run_dir=RUN ...]   a page about a run, or comparing several
  offpolicy-rl import  --from=DIR|FILE.gguf --to=DIR       checks and copies a published checkpoint
  offpolicy-rl export  --run_dir=RUN --to=DIR              a run's policy as a published checkpoint
  offpolicy-rl explain --rewards=0,0,1,1 --objective=oapl  the target that an objective induces
  offpolicy-rl keys    [PATTERN]                           every key of a configuration

A card (--config) is a Python file with a configuration, RUN the directory of a run.
`offpolicy-rl COMMAND --help` lists the flags of a command. Any key of a configuration is a flag,
too: --config.objective.beta=0.2
"""

import argparse
import contextlib
import os
import sys

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import commands, training
from offpolicy_rl.cli import flags as flags_lib
from offpolicy_rl.system import children, compiled, environment, memory, output, signals

_COMMANDS = {
  "local": training.local,
  "learner": training.learner,
  "sampler": training.sampler,
  "watch": commands.watch,
  "sweep": commands.sweep,
  "eval": commands.eval_,
  "serve": commands.serve,
  "new": commands.new,
  "check": commands.check,
  "plan": commands.plan,
  "report": commands.report,
  "import": commands.import_,
  "export": commands.export,
  "explain": commands.explain,
  "keys": commands.keys,
}
_WORKING = ("local", "learner", "sampler", "sweep", "eval", "serve")  # do more than print


# Command, flag, and the flag without which it would do nothing.
_PARTNERS = (
  ("local", "tls_ca", "tls_cert"),
  ("local", "tls_server_name", "tls_cert"),
  ("learner", "num_processes", "coordinator"),
  ("learner", "process_id", "coordinator"),
  ("sampler", "vllm_dir", "vllm"),
  ("explain", "png", "rewards"),
)


def main(argv: list[str] | None = None) -> int:
  """Runs a command; returns the exit code.

  0 done, 1 failed, 2 wrong arguments, 3 a plan that does not fit, 130 interrupted.
  """
  output.guard()
  children.end_with_parent()
  memory.keep_freed_memory()
  argv = sys.argv[1:] if argv is None else argv
  assignments = [flags_lib.key_and_text(a) for a in argv if a.startswith("--config.")]
  others = [a for a in argv if not a.startswith("--config.")]
  parser = flags_lib.parser(__doc__)
  for bare in (a for a in argv if a.startswith("--config.") and "=" not in a):
    parser.error(f"{bare}: got no value, expected {bare}=VALUE")
  flags = parser.parse_args(others)
  output.set_up_logging(verbose=flags.verbose)
  environment.ignore_what_changes_results()
  with contextlib.suppress(OSError):  # the directory is gone
    sys.path.append(os.getcwd())  # for "module:function"; last, so that it hides no package
  only_prints = flags.role == "sweep" and (flags.print or flags.summarize)
  working = flags.role in _WORKING and not only_prints
  if working:
    output.in_background()
    compiled.set_up(keep=not flags.no_cache)
  elif flags.role == "watch":
    output.strict()
  signals.interrupt_like_ctrl_c()
  try:
    _check_partners(flags)
    code = _COMMANDS[flags.role](flags, assignments)
  except BrokenPipeError:  # of `watch | head`
    return 1
  except KeyboardInterrupt:
    return signals.INTERRUPTED
  except (config_lib.ConfigError, ValueError, OSError, RuntimeError) as error:
    if flags.verbose:
      raise
    print(f"offpolicy-rl {flags.role}: {error}", file=sys.stderr)
    before = None if error.__suppress_context__ else error.__context__
    if before is not None and str(before):  # this one came up while files and servers were closed
      print(f"  after: {before}", file=sys.stderr)
    if isinstance(error, config_lib.ConfigError) and (line := config_lib.advice(str(error))):
      print(f"  {line}", file=sys.stderr)
    return 2 if isinstance(error, config_lib.ConfigError) else 1
  if not working and (problem := output.problem()):
    if not isinstance(problem, BrokenPipeError):  # the reader has seen enough
      print(f"offpolicy-rl {flags.role}: standard output: {problem}", file=sys.stderr)
    return code or 1
  return code


def _check_partners(flags: argparse.Namespace) -> None:
  for command, flag, partner in _PARTNERS:
    value = getattr(flags, flag, None) if command == flags.role else None
    if value is not None and getattr(flags, partner) is None:
      raise config_lib.ConfigError(f"--{flag}: got {str(value)!r}, expected --{partner} beside it")


if __name__ == "__main__":
  sys.exit(main())
