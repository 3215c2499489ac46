"""The command line's flags, by role."""

import argparse
import pathlib

from offpolicy_rl import __version__
from offpolicy_rl.cli import flag_values


class _Parser(argparse.ArgumentParser):
  def error(self, message: str):
    """One line, as for every other mistake."""
    self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}\n")


def parser(description: str) -> argparse.ArgumentParser:
  """The flags of every role; `description` is shown by --help."""
  parser = _Parser(
    prog="offpolicy-rl",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--version", action="version", version=__version__)
  roles = parser.add_subparsers(
    dest="role",
    required=True,
    metavar="local|learner|sampler|watch|sweep|eval|check|plan|report|import|export|explain|keys",
  )
  both = argparse.ArgumentParser(add_help=False)
  both.add_argument("--verbose", action="store_true", help="more log lines, full tracebacks")
  wired = _wired(both)
  trains = _trains(wired)
  local = roles.add_parser("local", parents=[trains], help="learner and samplers on this machine")
  local.add_argument(
    "--samplers", type=flag_values.count, default=1, help="number of sampler processes"
  )
  _add_names(local, "authority of --tls_cert (PEM), which the samplers of local trust")
  learner = roles.add_parser("learner", parents=[trains], help="only the learner")
  learner.add_argument(
    "--coordinator",
    metavar="HOST:PORT",
    type=flag_values.coordinator,
    help="several processes train together, one per host, each started with the same flags: where "
    "the first one is; auto = ask the TPU pod or the cluster",
  )
  learner.add_argument(
    "--checkpoint_dir",
    metavar="PATH",
    help="checkpoints go there, RUN/checkpoints is a link to it; with --coordinator a directory "
    "that all processes share, while RUN need only be a local disk of the first one",
  )
  learner.add_argument("--num_processes", type=flag_values.count, help="of them (not with auto)")
  learner.add_argument(
    "--process_id", type=flag_values.index, help="of this one, from 0 (not with auto)"
  )
  sampler = roles.add_parser("sampler", parents=[wired], help="only a sampler")
  sampler.add_argument(
    "--learner", required=True, type=flag_values.peer, help="the learner's HOST:PORT"
  )
  sampler.add_argument("--name", help="unique name (default: host and process id)")
  _add_patience(sampler)
  _add_vllm(sampler)
  _add_own_protection(sampler)
  watch = roles.add_parser("watch", parents=[both], help="a live run on this terminal")
  watch.add_argument("run", metavar="RUN", help="a run's directory, or its learner's HOST:PORT")
  watch.add_argument("--once", action="store_true", help="show one frame and end")
  _add_patience(watch)
  _add_own_protection(watch)
  _add_sweep(roles, both)
  _add_eval(roles, both)
  _add_plan(roles, both)
  _add_files(roles, both)
  return parser


def _wired(both: argparse.ArgumentParser) -> argparse.ArgumentParser:
  """Flags of learner and sampler."""
  wired = argparse.ArgumentParser(add_help=False, parents=[both])
  wired.add_argument(
    "--weights_dir",
    metavar="PATH",
    help="weights go through this directory (local, NFS, gs://), which learner and samplers share",
  )
  wired.add_argument(
    "--metrics_port",
    type=flag_values.port,
    help="serve figures for Prometheus there (0 = any free port)",
  )
  wired.add_argument(
    "--metrics_host", default="127.0.0.1", help="address of --metrics_port; others may read it"
  )
  return wired


def _trains(wired: argparse.ArgumentParser) -> argparse.ArgumentParser:
  """Flags of whoever trains."""
  trains = argparse.ArgumentParser(add_help=False, parents=[wired])
  trains.add_argument("--config", help="experiment card, e.g. configs/demo.py")
  trains.add_argument("--run_dir", help="where the run's files go (default: runs/NAME-TIME)")
  again = trains.add_mutually_exclusive_group()
  again.add_argument(
    "--resume",
    action="store_true",
    help="go on from run_dir's last checkpoint, with the run's own configuration",
  )
  again.add_argument(
    "--restart",
    action="store_true",
    help="begin anew in run_dir; the run before is kept in RUN/before-TIME",
  )
  trains.add_argument(
    "--replay", metavar="FILE", help="sample each group with the version that this run's did"
  )
  trains.add_argument(
    "--profile",
    metavar="START-END",
    help="trace the updates that make version END out of START, into RUN/profile",
  )
  trains.add_argument(
    "--profile_memory",
    type=int,
    metavar="VERSION",
    help="write what the devices' memory holds after so many updates, into RUN/profile",
  )
  trains.add_argument(
    "--listen",
    default="127.0.0.1:0",
    type=flag_values.listen,
    help="address to serve (port 0 = any)",
  )
  _add_protection(trains)
  return trains


def _add_vllm(sampler: argparse.ArgumentParser) -> None:
  """Flags of a sampler whose completions a server makes."""
  sampler.add_argument(
    "--vllm",
    metavar="URL",
    type=flag_values.url,
    help="a vLLM server generates, started as sampler/served.py says",
  )
  sampler.add_argument(
    "--vllm_dir",
    metavar="DIR",
    type=pathlib.Path,
    help="the published checkpoint that it was started with; its weights are replaced",
  )
  sampler.add_argument(
    "--vllm_tolerance",
    type=flag_values.number,
    default=0.1,
    metavar="NATS",
    help="how far its log-probabilities may be from those of the weights it was told to load",
  )


def _add_sweep(roles, both: argparse.ArgumentParser) -> None:
  """The role that makes many runs."""
  sweep = roles.add_parser("sweep", parents=[both], help="many runs of a card, from one file")
  sweep.add_argument("--config", help="experiment card that all runs share")
  sweep.add_argument("--sweep", metavar="FILE", help="e.g. configs/sweeps/lag_x_objective.py")
  sweep.add_argument("--out", metavar="DIR", help="of the runs (default: sweeps/CARD-FILE)")
  sweep.add_argument("--parallel", type=flag_values.count, default=1, help="runs at a time")
  sweep.add_argument(
    "--samplers", type=flag_values.count, default=1, help="sampler processes of each run"
  )
  sweep.add_argument("--retry_failed", action="store_true", help="failed runs go on, too")
  sweep.add_argument(
    "--print",
    nargs="?",
    const="local",
    choices=("local", "learner"),
    metavar="local|learner",
    help="only print a command line for every run, for pods and schedulers",
  )
  sweep.add_argument("--summarize", action="store_true", help="only write the summary again")
  sweep.add_argument("--x", metavar="KEY", help="horizontal axis of the picture")
  sweep.add_argument("--series", metavar="KEY", help="what its lines stand for")


def _add_eval(roles, both: argparse.ArgumentParser) -> None:
  """The role that evaluates; flags without a default leave the configuration's value."""
  measured = roles.add_parser("eval", parents=[both], help="pass@k of a checkpoint or of a run")
  measured.add_argument("--checkpoint", metavar="DIR", help="a published checkpoint (import)")
  measured.add_argument("--run_dir", metavar="DIR", help="a run; its newest checkpoint counts")
  measured.add_argument("--config", help="experiment card (default: configs/base.py, see README)")
  measured.add_argument("--task", help="name of a task")
  measured.add_argument("--k", default="1", help="of pass@k and maj@k, e.g. 1,4,16")
  measured.add_argument(
    "--samples", type=flag_values.count, help="completions per problem (default: largest k)"
  )
  measured.add_argument("--split", choices=("heldout", "train"), default="heldout")
  measured.add_argument(
    "--problems", type=flag_values.count, help="the first so many (default: all)"
  )
  measured.add_argument(
    "--temperature", type=flag_values.positive, help="of the sampled completions"
  )
  measured.add_argument("--max_prompt_tokens", type=int, help="longer prompts are left out")
  measured.add_argument("--max_completion_tokens", type=int, help="where completions are cut")
  measured.add_argument("--slots", type=int, help="completions decoded side by side")
  measured.add_argument("--seed", type=int, help="of the samples and the intervals")
  measured.add_argument("--out", metavar="DIR", help="new directory (default: evals/NAME-TIME)")


def _add_plan(roles, both: argparse.ArgumentParser) -> None:
  """The roles that say before a run whether it could start, or fits a pod which is not there."""
  checked = roles.add_parser("check", parents=[both], help="what a run would make of its data")
  checked.add_argument("--config", required=True, help="experiment card")
  planned = roles.add_parser("plan", parents=[both], help="does a card fit on a TPU pod?")
  planned.add_argument("--config", required=True, help="experiment card")
  planned.add_argument("--topology", required=True, help="e.g. v5e:4x4, v5p:4x4x4, v6e:16x16")
  planned.add_argument(
    "--architecture",
    metavar="FILE",
    help="config.json of the model (default: the checkpoint's, or what is known of its name)",
  )
  planned.add_argument("--json", type=pathlib.Path, help="write what was found, too")
  planned.add_argument(
    "--cache", default=".cache/plans", metavar="DIR", help="where answers are kept"
  )


def _add_files(roles, both: argparse.ArgumentParser) -> None:
  """The roles that read and write files, and the one that only computes."""
  report = roles.add_parser("report", parents=[both], help="write the report of a run, or several")
  report.add_argument(
    "--run_dir", required=True, action="append", help="given several times: one page about all"
  )
  report.add_argument(
    "--to",
    type=pathlib.Path,
    metavar="FILE",
    help="the page about several runs (default: comparison.html beside the first run)",
  )
  taken = roles.add_parser("import", parents=[both], help="check and take a published checkpoint")
  taken.add_argument(
    "--from",
    dest="source",
    required=True,
    metavar="DIR|FILE.gguf",
    help="config.json, *.safetensors and tokenizer files (local or gs://), or a GGUF file",
  )
  taken.add_argument("--to", required=True, metavar="DIR", help="where to put it")
  taken.add_argument(
    "--ignore",
    action="append",
    default=[],
    metavar="KEY",
    help="an unknown key of config.json that does not change what the model computes",
  )
  given = roles.add_parser("export", parents=[both], help="publish the policy of a run")
  given.add_argument("--run_dir", required=True, help="of a run that began with a published one")
  given.add_argument("--to", required=True, metavar="DIR", help="where to put it")
  given.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the tensors")
  explain = roles.add_parser("explain", parents=[both], help="the target that an objective induces")
  explain.add_argument("--config", help="experiment card (default: configs/base.py)")
  explain.add_argument("--rewards", help="of one group, e.g. 0,0,1,1: computes the target")
  explain.add_argument("--objective", help="a preset (without --rewards: shows its choices)")
  explain.add_argument(
    "--beta", type=flag_values.positive, help="temperature (default: the preset's)"
  )
  explain.add_argument("--png", type=pathlib.Path, help="draw a picture, too")
  keys = roles.add_parser("keys", parents=[both], help="every key of a configuration")
  keys.add_argument("pattern", nargs="?", default="", help="only keys with this in name or meaning")
  keys.add_argument("--markdown", action="store_true", help="as the table of configs/README.md")


def _add_protection(parser: argparse.ArgumentParser) -> None:
  """Flags of whoever listens."""
  parser.add_argument("--tls_cert", help="the learner's certificate (PEM): serve TLS only")
  parser.add_argument("--tls_key", help="private key of --tls_cert (PEM)")
  parser.add_argument("--tls_client_ca", help="admit only samplers with a certificate of it (PEM)")
  parser.add_argument("--token_file", help="admit only samplers that know the token in this file")
  parser.add_argument(
    "--insecure", action="store_true", help="allow --listen beyond loopback without protection"
  )
  parser.add_argument(
    "--reflection", action="store_true", help="describe the services to tools such as grpcurl"
  )


def _add_patience(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--patience", type=flag_values.number, default=60.0, help="seconds to look for the learner"
  )
  parser.add_argument(
    "--proxy",
    metavar="URL",
    type=flag_values.proxy,
    help="go through this HTTP proxy; without, none is used, whatever the environment says",
  )


def _add_own_protection(parser: argparse.ArgumentParser) -> None:
  """Credentials of whoever connects."""
  parser.add_argument("--tls_cert", help="certificate that shows who this is (PEM)")
  parser.add_argument("--tls_key", help="private key of --tls_cert (PEM)")
  parser.add_argument("--token_file", help="file with the learner's token")
  _add_names(parser, "authority of the learner's certificate (PEM): speak TLS and trust no other")


def _add_names(parser: argparse.ArgumentParser, ca_help: str) -> None:
  """Flags of whoever connects."""
  parser.add_argument("--tls_ca", help=ca_help)
  parser.add_argument("--tls_server_name", help="name in that certificate, if not the host")


def key_and_text(assignment: str) -> tuple[str, str]:
  """--config.objective.beta=0.2 -> ("objective.beta", "0.2")."""
  return assignment.removeprefix("--config.").partition("=")[::2]
