"""The flags of all commands, with checks of their values.

The checks are strict because libraries are not: gRPC takes port 70000 for 4464, and a timeout of
NaN seconds never ends.
"""

import argparse
import ipaddress
import math
import pathlib
import re
import urllib.parse
from typing import NoReturn

from offpolicy_rl import __version__

MAX_PORT = 65_535
_ANY_PORT = "address to listen on (default: %(default)s; port 0 = any free one)"
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")


def _refuse(text: str, expected: str) -> NoReturn:
  raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")


def number(text: str, *, positive: bool = False) -> float:
  """A finite number of at least 0, or above 0."""
  expected = "a finite number above 0" if positive else "a finite number of at least 0"
  try:
    value = float(text)
  except ValueError:
    _refuse(text, expected)
  if not math.isfinite(value) or value < 0 or (positive and value == 0):
    _refuse(text, expected)
  return value


def positive(text: str) -> float:
  return number(text, positive=True)


def count(text: str, least: int = 1) -> int:
  """An integer of at least `least`."""
  if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
    _refuse(text, f"a whole number of at least {least}")
  return int(text)


def index(text: str) -> int:
  return count(text, least=0)


def port(text: str) -> int:
  """A port; 0 = any free one."""
  if not _is_port(text, 0):
    _refuse(text, f"0 to {MAX_PORT}")
  return int(text)


def listen(text: str) -> str:
  """HOST:PORT to serve; port 0 = any free one."""
  host, _, port = text.rpartition(":")
  if not (_is_host(host) and _is_port(port, 0)):
    _refuse(text, _address("such as 127.0.0.1:0 or 0.0.0.0:50051", 0))
  return text


def is_peer(text: str) -> bool:
  """Whether it is a HOST:PORT to connect to."""
  host, _, port = text.rpartition(":")
  return _is_host(host) and _is_port(port, 1)


def peer(text: str) -> str:
  """HOST:PORT to connect to."""
  if not is_peer(text):
    _refuse(text, _address("such as learner.example:50051 or [::1]:50051", 1))
  return text


def coordinator(text: str) -> str:
  """HOST:PORT to connect to, or auto."""
  return text if text == "auto" else peer(text)


def url(text: str, schemes: tuple[str, ...] = ("http", "https")) -> str:
  """http://HOST[:PORT], or https."""
  expected = " or ".join(f"{scheme}://HOST:PORT" for scheme in schemes)
  try:
    parts = urllib.parse.urlsplit(text)
    host, port = parts.hostname or "", parts.port
  except ValueError:
    _refuse(text, expected)
  host = f"[{host}]" if ":" in host else host
  if parts.scheme not in schemes or not _is_host(host) or port == 0:
    _refuse(text, expected)
  return text


def proxy(text: str) -> str:
  return url(text, schemes=("http",))


def _address(examples: str, least: int) -> str:
  return f"HOST:PORT {examples}, the port from {least} to {MAX_PORT}"


def _is_port(text: str, least: int) -> bool:
  return bool(re.fullmatch(r"[0-9]{1,5}", text)) and least <= int(text) <= MAX_PORT


def _is_host(text: str) -> bool:
  """A name, an IPv4 address, or an IPv6 address in brackets."""
  try:
    if text.startswith("[") and text.endswith("]"):
      return bool(ipaddress.IPv6Address(text[1:-1]))
    if re.fullmatch(r"[0-9.]+", text):
      return bool(ipaddress.IPv4Address(text))
  except ValueError:
    return False
  return bool(_NAME.fullmatch(text))


def key_and_text(assignment: str) -> tuple[str, str]:
  """--config.objective.beta=0.2 -> ("objective.beta", "0.2")."""
  return assignment.removeprefix("--config.").partition("=")[::2]


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}\n")


def parser(description: str) -> argparse.ArgumentParser:
  """Makes the parser of all commands; --help shows `description`."""
  parser = _Parser(
    prog="offpolicy-rl",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--version", action="version", version=__version__)
  commands = parser.add_subparsers(dest="role", required=True, metavar="COMMAND")
  for name, description, groups in (
    ("local", "Runs a learner and its samplers on this machine.", (_training, _local)),
    ("learner", "Runs a learner; prints its address.", (_training, _learner)),
    (
      "sampler",
      "Runs a sampler, which the learner configures.",
      (_serving, _sampler, _client, _cache),
    ),
    ("watch", "Shows a live run on this terminal.", (_watch, _client)),
    (
      "sweep",
      "Runs a card many times with different keys, and summarizes the runs.",
      (_sweep, _cache),
    ),
    (
      "eval",
      "Measures greedy accuracy, pass@k and maj@k of a checkpoint or of a run.",
      (_eval, _cache),
    ),
    (
      "serve",
      "Serves a trained policy to clients of OpenAI's chat-completions interface.",
      (_serve, _cache),
    ),
    ("new", "Writes a card, a task and a verifier to start from.", (_new,)),
    ("check", "Reads all prompts; reports which can't be used, and why.", (_check,)),
    ("plan", "Compiles a card for a TPU pod and says whether it fits.", (_plan,)),
    ("report", "Writes an HTML page about a run, or one that compares several.", (_report,)),
    ("import", "Checks a published checkpoint and copies or converts it.", (_import,)),
    ("export", "Writes the policy of a run as a published checkpoint.", (_export,)),
    (
      "explain",
      "Lists all objectives, or shows one; with --rewards, the target that it induces.",
      (_explain,),
    ),
    ("keys", "Lists the keys of a configuration.", (_keys,)),
  ):
    command = commands.add_parser(name, description=description)
    command.add_argument("--verbose", action="store_true", help="more log lines, full tracebacks")
    for add_flags in groups:
      add_flags(command)
  return parser


def _serving(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  shared = "directory for weights (local, NFS, gs://) that learner and samplers share"
  add("--weights_dir", metavar="PATH", help=shared)
  add("--metrics_port", type=port, help="serve metrics for Prometheus here (0 = any free port)")
  host = "address of --metrics_port (default: %(default)s); whoever reaches it can read the metrics"
  add("--metrics_host", default="127.0.0.1", help=host)


def _training(parser: argparse.ArgumentParser) -> None:
  _serving(parser)
  add = parser.add_argument
  add("--config", help="card of the run, e.g. configs/demo.py")
  add("--run_dir", help="where the run's files go (default: runs/NAME-TIME)")
  _cache(parser)
  again = parser.add_mutually_exclusive_group()
  resume = "continue from run_dir's last checkpoint, with the run's own configuration"
  again.add_argument("--resume", action="store_true", help=resume)
  restart = "start over in run_dir; the previous run is kept in RUN/before-TIME"
  again.add_argument("--restart", action="store_true", help=restart)
  add(
    "--replay",
    metavar="FILE",
    help="repeat a run: sample each group with the version in this lag_schedule.jsonl",
  )
  trace = "trace the updates from version START to END, into RUN/profile"
  add("--profile", metavar="START-END", help=trace)
  memory = "profile the devices' memory at this version, into RUN/profile"
  add("--profile_memory", type=int, metavar="VERSION", help=memory)
  add("--listen", default="127.0.0.1:0", type=listen, help=_ANY_PORT)
  add("--tls_cert", help="the learner's certificate (PEM): serve TLS only")
  add("--tls_key", help="private key of --tls_cert (PEM)")
  add("--tls_client_ca", help="admit only samplers with a certificate of this CA (PEM)")
  add("--token_file", help="admit only samplers that know the token in this file")
  beyond = "allow --listen on other addresses than loopback without TLS and authentication"
  add("--insecure", action="store_true", help=beyond)
  described = "answer gRPC reflection, for tools such as grpcurl"
  add("--reflection", action="store_true", help=described)


def _cache(parser: argparse.ArgumentParser) -> None:
  fresh = "compile everything anew: neither read nor keep compiled programs (~/.cache/offpolicy-rl)"
  parser.add_argument("--no_cache", action="store_true", help=fresh)


def _local(parser: argparse.ArgumentParser) -> None:
  processes = "number of sampler processes (default: %(default)s)"
  parser.add_argument("--samplers", type=count, default=1, help=processes)
  _authority(parser, "CA of --tls_cert (PEM), which the samplers trust")


def _learner(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add(
    "--coordinator",
    metavar="HOST:PORT",
    type=coordinator,
    help="train with several processes, one per host, all started with the same flags: address of "
    "the first one; auto = from the TPU pod or the cluster",
  )
  add(
    "--checkpoint_dir",
    metavar="PATH",
    help="directory for checkpoints, to which RUN/checkpoints becomes a link; with --coordinator "
    "all processes must share it, while RUN may be on a local disk of the first one",
  )
  add("--num_processes", type=count, help="number of processes (not with auto)")
  add("--process_id", type=index, help="index of this process, from 0 (not with auto)")


def _sampler(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--learner", required=True, type=peer, help="the learner's HOST:PORT")
  add("--name", help="name in logs and metrics (default: host and process id)")
  server = "generate with this vLLM server, started as offpolicy_rl/sampler/served.py says"
  add("--vllm", metavar="URL", type=url, help=server)
  published = "the published checkpoint that the server was started with; its weights are replaced"
  add("--vllm_dir", metavar="DIR", type=pathlib.Path, help=published)
  gap = "end if the server's log-probabilities differ by more from those of the weights (default: "
  gap += "%(default)s)"
  add("--vllm_tolerance", type=number, default=0.1, metavar="NATS", help=gap)


def _client(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  looking = "seconds to look for the learner (default: %(default)g); for a sampler that has "
  looking += "joined, transport.reconnect_seconds"
  add("--patience", type=number, default=60.0, help=looking)
  through = "HTTP proxy (default: none, whatever the environment says)"
  add("--proxy", metavar="URL", type=proxy, help=through)
  add("--tls_cert", help="client certificate (PEM)")
  add("--tls_key", help="private key of --tls_cert (PEM)")
  add("--token_file", help="file with the learner's token")
  _authority(parser, "CA of the learner's certificate (PEM): use TLS and trust no other")


def _authority(parser: argparse.ArgumentParser, help: str) -> None:
  parser.add_argument("--tls_ca", help=help)
  parser.add_argument("--tls_server_name", help="name in the certificate, if not the host's")


def _watch(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("run", metavar="RUN", help="a run's directory, or its learner's HOST:PORT")
  parser.add_argument("--once", action="store_true", help="show one frame and end")


def _sweep(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--config", help="card that all runs share")
  add("--sweep", metavar="FILE", help="what differs, e.g. configs/sweeps/lag_x_objective.py")
  add("--out", metavar="DIR", help="directory of the runs (default: sweeps/CARD-FILE)")
  add("--parallel", type=count, default=1, help="runs at a time (default: %(default)s)")
  processes = "sampler processes of each run (default: %(default)s)"
  add("--samplers", type=count, default=1, help=processes)
  add("--retry_failed", action="store_true", help="run those that failed again, too")
  add(
    "--print",
    nargs="?",
    const="local",
    choices=("local", "learner"),
    metavar="local|learner",
    help="run nothing; print a command line per run, for schedulers (default: local)",
  )
  add("--summarize", action="store_true", help="run nothing; write the summary of the runs so far")
  add("--x", metavar="KEY", help="key on the horizontal axis of the picture")
  add("--series", metavar="KEY,...", help="keys that tell the lines of the picture apart")


def _eval(parser: argparse.ArgumentParser) -> None:
  """Flags without a default leave the configuration's value."""
  _weights(parser)
  add = parser.add_argument
  add("--task", help="name of a task, e.g. gsm8k")
  add("--k", default="1", help="every k of pass@k and maj@k, e.g. 1,4,16 (default: %(default)s)")
  add("--samples", type=count, help="completions per problem (default: largest k)")
  problems = "which problems (default: %(default)s)"
  add("--split", choices=("heldout", "train"), default="heldout", help=problems)
  add("--problems", type=count, help="only the first so many (default: all)")
  add("--temperature", type=positive, help="of the sampled completions")
  add("--max_prompt_tokens", type=int, help="longer prompts are left out")
  add("--max_completion_tokens", type=int, help="longer completions are cut")
  add("--slots", type=int, help="completions decoded at the same time")
  add("--seed", type=int, help="seed of samples and intervals")
  add("--out", metavar="DIR", help="new directory (default: evals/NAME-TIME)")


def _weights(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--checkpoint", metavar="DIR", help="a published checkpoint, as `import` writes it")
  add("--run_dir", metavar="DIR", help="or a run: its newest checkpoint and its configuration")
  add("--config", help="card for --checkpoint (default: configs/base.py, but 512 tokens)")


def _serve(parser: argparse.ArgumentParser) -> None:
  _weights(parser)
  add = parser.add_argument
  add("--listen", default="127.0.0.1:8000", type=listen, help=_ANY_PORT)
  add("--model", metavar="NAME", help="the model's name for clients (default: the directory's)")
  at_once = "answers sampled at the same time (default: %(default)s)"
  add("--slots", type=count, default=8, help=at_once)
  total = "tokens of prompt and answer together (default: those of the run, at least 2048)"
  add("--context", type=count, metavar="TOKENS", help=total)
  add("--token_file", help="file with the API key that clients have to send")
  beyond = "allow --listen on other addresses than loopback; nothing is encrypted"
  add("--insecure", action="store_true", help=beyond)


def _new(parser: argparse.ArgumentParser) -> None:
  folder = "the folder to make, a Python package, e.g. my_task"
  parser.add_argument("name", metavar="NAME", help=folder)


def _check(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", required=True, help="card whose prompts are read")


def _plan(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--config", required=True, help="card to compile")
  add("--topology", required=True, help="TPU and its chips, e.g. v5e:4x4, v5p:4x4x4, v6e:16x16")
  keys = "config.json of the model (default: the checkpoint's, or the one known by its name)"
  add("--architecture", metavar="FILE", help=keys)
  add("--json", type=pathlib.Path, metavar="FILE", help="also write the result to this file")
  cached = "directory of cached results (default: %(default)s)"
  add("--cache", default=".cache/plans", metavar="DIR", help=cached)


def _report(parser: argparse.ArgumentParser) -> None:
  several = "a run; given several times, runs to compare"
  parser.add_argument("--run_dir", required=True, action="append", help=several)
  page = "the page that compares runs (default: comparison.html next to the first run)"
  parser.add_argument("--to", type=pathlib.Path, metavar="FILE", help=page)


def _import(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  files = "config.json, *.safetensors and tokenizer files (local or gs://), or a GGUF file"
  add("--from", dest="source", required=True, metavar="DIR|FILE.gguf", help=files)
  add("--to", required=True, metavar="DIR", help="where to put it")
  unknown = "accept a key of config.json that is unknown here, because it does not change what the "
  unknown += "model computes; may be given several times"
  add("--ignore", action="append", default=[], metavar="KEY", help=unknown)


def _export(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--run_dir", required=True, help="a run that began with a published checkpoint")
  add("--to", required=True, metavar="DIR", help="where to put it")
  add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as imported")


def _explain(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--config", help="card with the objective (default: configs/base.py)")
  add("--rewards", help="rewards of a group, e.g. 0,0,1,1")
  add("--objective", metavar="NAME", help="a preset (default: the card's)")
  add("--beta", type=positive, help="its temperature (default: the preset's)")
  add("--png", type=pathlib.Path, metavar="FILE", help="with --rewards, also draw a picture")


def _keys(parser: argparse.ArgumentParser) -> None:
  pattern = "only keys with this text in their name or meaning"
  parser.add_argument("pattern", nargs="?", default="", help=pattern)
  markdown = "print tables as in configs/README.md"
  parser.add_argument("--markdown", action="store_true", help=markdown)
