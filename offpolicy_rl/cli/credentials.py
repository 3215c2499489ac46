"""Reads and checks the credentials in flags before anything starts."""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from offpolicy_rl import config as config_lib

if TYPE_CHECKING:
  from offpolicy_rl.transport import client, security


def for_learner(flags: argparse.Namespace) -> "security.Credentials":
  """A learner's credentials; raises ConfigError if they are wrong or insufficient for --listen."""
  from offpolicy_rl.transport import security  # imports gRPC

  credentials = security.Credentials(
    flags.tls_cert, flags.tls_key, flags.tls_client_ca, flags.token_file
  )
  try:
    security.check_learner(credentials)
    security.check_listen_address(flags.listen, credentials, insecure=flags.insecure)
  except security.CredentialsError as error:
    raise config_lib.ConfigError(str(error)) from None
  return credentials


def for_client(flags: argparse.Namespace) -> "security.Credentials":
  """The credentials of a sampler or watcher; raises ConfigError if they are wrong."""
  from offpolicy_rl.transport import security  # imports gRPC

  credentials = security.Credentials(
    flags.tls_cert, flags.tls_key, flags.tls_ca, flags.token_file, flags.tls_server_name
  )
  try:
    security.check_sampler(credentials)
  except security.CredentialsError as error:
    raise config_lib.ConfigError(str(error)) from None
  return credentials


def for_chats(flags: argparse.Namespace) -> str:
  """The key that clients of `serve` have to send, "" = none; ConfigError as above."""
  from offpolicy_rl.transport import security  # imports gRPC

  try:
    key = security.read_token(security.Credentials(token_file=flags.token_file))
  except security.CredentialsError as error:
    raise config_lib.ConfigError(str(error)) from None
  if not security.is_loopback(flags.listen) and not flags.insecure:
    raise config_lib.ConfigError(
      f"--listen: got {flags.listen!r}, expected a loopback address such as 127.0.0.1:8000: "
      "nothing is encrypted; add --insecure for a network that you trust, or use a reverse proxy"
    )
  return key or ""


def learner_client(
  flags: argparse.Namespace, address: str, sampler_id: str
) -> "client.LearnerClient":
  """A client of the learner at HOST:PORT, which connects at its first call."""
  credentials = for_client(flags)
  from offpolicy_rl.transport import client

  return client.LearnerClient(
    address,
    sampler_id,
    reconnect_seconds=flags.patience,
    credentials=credentials,
    proxy=flags.proxy,
  )


def local_sampler_flags(flags: argparse.Namespace) -> list[str]:
  """Checks the credentials of `local`; returns flags for its samplers.

  They present the learner's own certificate.
  """
  for_learner(flags)
  if not flags.tls_cert:
    return given(flags, ("token_file",))
  if not flags.tls_ca:
    raise config_lib.ConfigError("--tls_ca: missing, expected because --tls_cert is given")
  flags.tls_server_name = flags.tls_server_name or "localhost"
  for_client(flags)
  return given(flags, ("tls_cert", "tls_key", "tls_ca", "tls_server_name", "token_file"))


def given(flags: argparse.Namespace, names: Iterable[str]) -> list[str]:
  """Formats those of the named flags that were given, for the command line of another process."""
  values = {name: getattr(flags, name) for name in names}
  values = {name: x for name, x in values.items() if x not in (None, "") and x is not False}
  return [f"--{name}" if x is True else f"--{name}={x}" for name, x in values.items()]
