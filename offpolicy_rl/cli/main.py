"""Command line: arguments -> configuration -> role.

  offpolicy-rl local   --config=configs/demo.py            a learner and a sampler on this machine
  offpolicy-rl learner --config=configs/demo.py            only the learner; prints its address
  offpolicy-rl sampler --learner=HOST:PORT                 only a sampler; configured by the learner
  offpolicy-rl watch   RUN|HOST:PORT                       a live run, here or elsewhere
  offpolicy-rl sweep   --config=... --sweep=FILE.py        many runs of a card, and their summary
  offpolicy-rl eval    --checkpoint=DIR --task=NAME --k=1,4  pass@k, greedy, majority vote
  offpolicy-rl check   --config=...                        reads all prompts: what is left out, why
  offpolicy-rl plan    --config=... --topology=v5e:4x4     does it fit on such a pod?
  offpolicy-rl report  --run_dir=runs/demo-...             writes the report of a run again, or
                                                           with several --run_dir a comparison
  offpolicy-rl import  --from=DIR|FILE.gguf --to=DIR       a published checkpoint, checked
  offpolicy-rl export  --run_dir=runs/... --to=DIR         its policy as a published checkpoint
  offpolicy-rl explain --rewards=0,0,1,1 --objective=oapl  the target that an objective induces
  offpolicy-rl keys    [PATTERN]                           every key of a configuration

  offpolicy-rl local   --replay=runs/.../lag_schedule.jsonl  an async run again, to the bit

Any key of a configuration: --config.objective.beta=0.2
"""

import contextlib
import functools
import logging
import math
import os
import pathlib
import signal
import socket
import sys
import threading
import time

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import arguments as arguments_lib
from offpolicy_rl.cli import commands
from offpolicy_rl.system import children, environment, memory, output

_LEARNER_FILES = ("tls_cert", "tls_key", "tls_client_ca", "token_file")
_LOOKED_AT = ("metrics_port", "metrics_host", "profile", "profile_memory")
_ONE_REQUEST_SECONDS = 0.5  # signals that come together
_SWITCHES = ("resume", "restart", "insecure", "reflection", "verbose")


def main(argv: list[str] | None = None) -> int:
  """Runs a role; returns the exit code.

  0 done, 1 failed, 2 wrong arguments, 3 a plan that does not fit, 130 interrupted.
  """
  output.guard()
  children.end_with_parent()
  memory.keep_freed_memory()
  argv = sys.argv[1:] if argv is None else argv
  assignments = [a for a in argv if a.startswith("--config.")]
  others = [a for a in argv if not a.startswith("--config.")]
  arguments = arguments_lib.parser(__doc__).parse_args(others)
  level = logging.INFO if arguments.verbose else logging.WARNING
  logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
  environment.ignore_what_changes_results()
  if not arguments.verbose:  # Orbax tells its errors twice; what it raises is said by us
    for handler in logging.getLogger().handlers:
      handler.addFilter(lambda record: record.name != "absl" or not record.exc_info)
  works = _print_beside_the_work(arguments)
  _interrupt_on_signals()
  try:
    code = _ROLES[arguments.role](arguments, assignments)
  except BrokenPipeError:  # of `watch | head`
    return 1
  except KeyboardInterrupt:
    return 130
  except (config_lib.ConfigError, ValueError, OSError, RuntimeError) as error:
    if arguments.verbose:
      raise
    print(f"offpolicy-rl {arguments.role}: {error}", file=sys.stderr)
    return 2 if isinstance(error, config_lib.ConfigError) else 1
  if not works and (problem := output.problem()):
    if not isinstance(problem, BrokenPipeError):  # a reader that has seen enough is no news
      print(f"offpolicy-rl {arguments.role}: standard output: {problem}", file=sys.stderr)
    return code or 1
  return code


def _print_beside_the_work(arguments) -> bool:
  """Whether a command does more than show something: then nobody's reading keeps it waiting."""
  only_shows = arguments.role == "sweep" and (arguments.print or arguments.summarize)
  works = arguments.role in ("local", "learner", "sampler", "sweep", "eval") and not only_shows
  if works:
    output.in_background()
  elif arguments.role == "watch":
    output.strict()
  return works


def _protection(arguments, ca: str | None, server_name: str | None = None):
  """The credentials that the flags name; not checked yet."""
  from offpolicy_rl.transport import security  # imports gRPC

  return security.Credentials(
    arguments.tls_cert, arguments.tls_key, ca, arguments.token_file, server_name
  )


def _learner_protection(arguments):
  """The learner's checked credentials, good for its address."""
  from offpolicy_rl.transport import security

  credentials = _protection(arguments, arguments.tls_client_ca)
  try:
    security.check_learner(credentials)
    security.check_listen_address(arguments.listen, credentials, insecure=arguments.insecure)
  except security.CredentialsError as error:
    raise config_lib.ConfigError(str(error)) from None
  return credentials


def _sampler_protection(arguments):
  """A sampler's checked credentials."""
  from offpolicy_rl.transport import security

  credentials = _protection(arguments, arguments.tls_ca, arguments.tls_server_name)
  try:
    security.check_sampler(credentials)
  except security.CredentialsError as error:
    raise config_lib.ConfigError(str(error)) from None
  return credentials


def _configuration(arguments, assignments: list[str]):
  """(checked configuration, lines about what is unlike the card or the run before)."""
  from offpolicy_rl.roles import resuming

  if (arguments.resume or arguments.restart) and not arguments.run_dir:
    raise config_lib.ConfigError("--run_dir: missing, expected the directory of the run to resume")
  config, run, notes = resuming.base(
    arguments.run_dir and _places(arguments),
    card=arguments.config,
    replay=arguments.replay,
    resume=arguments.resume,
    restart=arguments.restart,
  )
  if arguments.replay:
    config.lag.mode, config.lag.schedule = "replay", str(pathlib.Path(arguments.replay).resolve())
  config_lib.override(config, [arguments_lib.key_and_text(a) for a in assignments])
  config_lib.validate(config)
  if run is not None:
    config_lib.check_resume(run, config)
    given = {arguments_lib.key_and_text(a)[0] for a in assignments}
    notes = [line for line in notes if line.partition(":")[0] not in given]
    notes += resuming.changes(run, config)
  return config, notes


def _places(arguments):
  """Where a run that was named is."""
  from offpolicy_rl.roles import resuming

  return resuming.places(arguments.run_dir, getattr(arguments, "checkpoint_dir", None))


def _run_directory(arguments):
  """The one that was given, or a new one; a context manager."""
  from offpolicy_rl.roles import resuming

  named = pathlib.Path(arguments.config or "replay").resolve()
  name = named.parent.name if named.suffix == ".json" else named.stem
  return resuming.directory(
    arguments.run_dir, pathlib.Path("runs"), f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
  )


@contextlib.contextmanager
def _ours(arguments, run_dir: pathlib.Path):
  """Nobody else works in the run's directories meanwhile; they are ready to be used."""
  from offpolicy_rl.roles import folders, resuming
  from offpolicy_rl.system import locks

  def lost(text: str) -> None:
    """Ends this process before it writes anything more."""
    print(f"offpolicy-rl learner: {text}", file=sys.stderr)
    _exit(1)

  where = resuming.places(str(run_dir), arguments.checkpoint_dir)
  named = {"run_dir": run_dir, "checkpoint_dir": where.checkpoints}
  named |= {"weights_dir": arguments.weights_dir} if arguments.weights_dir else {}
  with contextlib.ExitStack() as held:
    for flag, directory in named.items():
      held.enter_context(locks.hold(str(directory), f"--{flag}", lost))
    if arguments.restart:
      for aside in resuming.set_aside(where):
        print(f"the run before is kept in {aside}")
    if arguments.checkpoint_dir:
      folders.link(run_dir / "checkpoints", where.checkpoints, empty=not arguments.resume)
    yield


def _interrupt_on_signals() -> None:
  """SIGTERM and SIGHUP like Ctrl-C, so that half-made directories go; for whoever says no more."""
  for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_DFL:
      with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(number, signal.default_int_handler)


def _exit(code: int) -> None:
  """At once, but for what is printed already."""
  output.drain()
  os._exit(code)


def _stop_on_signals(stop: threading.Event | None = None) -> threading.Event:
  """SIGINT, SIGTERM, SIGHUP (the terminal was closed): end in order. Again: end at once.

  Shells and schedulers tell the same thing by several signals: those of one moment count as one,
  and a second SIGHUP is never more than the first.
  """
  stop = stop or threading.Event()
  first = math.inf  # when the first one came

  def handle(number, _):
    """In order at first, then at once."""
    nonlocal first
    now = time.monotonic()
    first = min(first, now)
    if number != signal.SIGHUP and now - first > _ONE_REQUEST_SECONDS:
      children.kill_all()
      _exit(130)
    stop.set()

  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
      signal.signal(number, handle)
  return stop


def _local(arguments, assignments) -> int:
  from offpolicy_rl.roles import local

  config, _ = _configuration(arguments, assignments)
  _profile(arguments, config)  # refuse mistakes before starting anything
  to_sampler = [*_local_protection(arguments), *_given(arguments, ("weights_dir",))]
  passed = [f"--listen={arguments.listen}", *assignments]
  passed += _given(arguments, ("config", "replay", "weights_dir", *_LEARNER_FILES, *_LOOKED_AT))
  passed += [f"--{flag}" for flag in _SWITCHES if getattr(arguments, flag)]
  config_lib.check_data(config)
  stop = _stop_on_signals()
  with _run_directory(arguments) as run_dir:
    code = local.run(
      passed, run_dir=run_dir, samplers=arguments.samplers, stop=stop, sampler_args=to_sampler
    )
  return 130 if stop.is_set() and code == 0 else code


def _local_protection(arguments) -> list[str]:
  """The flags of local's samplers: they show the learner's own certificate, as they are its own."""
  _learner_protection(arguments)
  if not arguments.tls_cert:
    return _given(arguments, ("token_file",))
  if not arguments.tls_ca:
    raise config_lib.ConfigError("--tls_ca: missing, expected because --tls_cert is given")
  arguments.tls_server_name = arguments.tls_server_name or "localhost"
  _sampler_protection(arguments)
  return _given(arguments, ("tls_cert", "tls_key", "tls_ca", "tls_server_name", "token_file"))


def _given(arguments, names: tuple[str, ...]) -> list[str]:
  """Those flags that were given, as they were given."""
  given = ((name, getattr(arguments, name)) for name in names)
  return [f"--{name}={value}" for name, value in given if value not in (None, "")]


def _learner(arguments, assignments) -> int:
  config, notes = _configuration(arguments, assignments)
  credentials = _learner_protection(arguments)
  for line in [*notes, *(f"warning: {warning}" for warning in config_lib.warnings(config))]:
    print(line, file=sys.stderr)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow only reads TFDS here
  if arguments.resume or arguments.process_id:  # what resumes has passed; the first one looks
    config_lib.check_data(config)
  else:
    from offpolicy_rl.roles import data  # imports JAX

    data.check_start(config)
  stop, profile = _stop_on_signals(), _profile(arguments, config)
  if arguments.coordinator:
    return _learner_of_several(arguments, config, stop, credentials)
  with _run_directory(arguments) as run_dir, _ours(arguments, run_dir):
    registry = _metrics(arguments)
    from offpolicy_rl.roles import learner  # imports JAX

    serving = learner.Serving(
      arguments.listen, credentials, arguments.reflection, arguments.weights_dir, registry
    )
    learner.run_learner(
      config, run_dir, serving, resume=arguments.resume, stop=stop, profile=profile
    )
  return 0


def _profile(arguments, config):
  """What to profile, checked."""
  from offpolicy_rl.observe import profiling

  return profiling.plan(arguments.profile, arguments.profile_memory, config.learner.steps)


def _metrics(arguments):
  """Serves figures where asked to, before anything expensive; the registry for them or None."""
  if arguments.metrics_port is None:
    return None
  from offpolicy_rl.observe import prometheus

  try:
    registry, url = prometheus.serve(arguments.metrics_host, arguments.metrics_port)
  except prometheus.AddressError as error:
    raise config_lib.ConfigError(str(error)) from None
  print(f"metrics at {url}", flush=True)
  return registry


def _learner_of_several(arguments, config, stop, credentials) -> int:
  """One process of several: the first leads, the others follow it."""
  for flag in ("run_dir", "weights_dir"):
    if not getattr(arguments, flag):
      raise config_lib.ConfigError(
        f"--{flag}: missing, expected because --coordinator is given: the processes share it"
      )
  from offpolicy_rl.roles import (
    follower,
    learner,
    multihost,  # imports JAX
  )

  group = multihost.Group(arguments.coordinator, arguments.num_processes, arguments.process_id)
  multihost.join(group)
  _stop_on_signals(stop)  # JAX has put its own handler in place of ours
  with multihost.ending_together():
    leader, followed = multihost.meet(group, config, stop=stop, lost=multihost.abandon)
    if followed:
      follower.run_follower(
        config, _places(arguments).checkpoints, follower=followed, weights_dir=arguments.weights_dir
      )
      return 0
    run_dir = pathlib.Path(arguments.run_dir)
    with _ours(arguments, run_dir):  # the first process's locks are those of all
      serving = learner.Serving(
        arguments.listen,
        credentials,
        arguments.reflection,
        arguments.weights_dir,
        _metrics(arguments),  # of the first process only
      )
      learner.run_learner(
        config,
        run_dir,
        serving,
        resume=arguments.resume,
        stop=stop,
        leader=leader,
        profile=_profile(arguments, config),
      )
  return 0


def _sampler(arguments, assignments) -> int:
  if assignments:
    raise config_lib.ConfigError(f"{assignments[0]}: a sampler is configured by its learner")
  if arguments.vllm and not arguments.vllm_dir:
    raise config_lib.ConfigError("--vllm_dir: missing, expected because --vllm is given")
  name = arguments.name or f"{socket.gethostname()}-{os.getpid()}"
  wire, registry = _learner_client(arguments, name), _metrics(arguments)
  from offpolicy_rl.roles import sampler  # imports JAX

  vllm = None
  if arguments.vllm:
    vllm = sampler.Vllm(arguments.vllm, arguments.vllm_dir, arguments.vllm_tolerance)
  sampler.run_sampler(
    wire,
    stop=_stop_on_signals(),
    abandon=lambda: _exit(0),
    weights_dir=arguments.weights_dir,
    vllm=vllm,
    registry=registry,
  )
  return 0


def _learner_client(arguments, name: str):
  """The connection to the learner, by which it knows this process as `name` and random letters."""
  credentials = _sampler_protection(arguments)
  from offpolicy_rl.transport import client, names

  return client.LearnerClient(
    arguments.learner,
    names.unique(name),
    reconnect_seconds=arguments.patience,
    credentials=credentials,
    proxy=arguments.proxy,
  )


def _watch(arguments, _) -> int:
  return commands.watch(arguments, lambda: _sampler_protection(arguments))


_ROLES = {
  "local": _local,
  "learner": _learner,
  "sampler": _sampler,
  "watch": _watch,
  "sweep": functools.partial(commands.sweep, stop_on_signals=_stop_on_signals),
  "eval": commands.eval_,
  "check": commands.check,
  "plan": commands.plan,
  "report": commands.report,
  "import": commands.import_,
  "export": commands.export,
  "explain": commands.explain,
  "keys": commands.keys,
}

if __name__ == "__main__":
  sys.exit(main())
