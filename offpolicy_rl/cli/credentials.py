"""Credentials from flags: checked, so that mistakes are refused before anything starts."""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from offpolicy_rl import config as config_lib

if TYPE_CHECKING:
  from offpolicy_rl.transport import client, security


def of_learner(flags: argparse.Namespace) -> "security.Credentials":
  """The learner's, good for --listen; ConfigError names the flag that is wrong."""
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


def of_client(flags: argparse.Namespace) -> "security.Credentials":
  """Those of a sampler or watcher; ConfigError names the flag that is wrong."""
  from offpolicy_rl.transport import security  # imports gRPC

  credentials = security.Credentials(
    flags.tls_cert, flags.tls_key, flags.tls_ca, flags.token_file, flags.tls_server_name
  )
  try:
    security.check_sampler(credentials)
  except security.CredentialsError as error:
    raise config_lib.ConfigError(str(error)) from None
  return credentials


def client_of_learner(
  flags: argparse.Namespace, address: str, sampler_id: str
) -> "client.LearnerClient":
  """A connection to the learner at HOST:PORT, made at its first call."""
  credentials = of_client(flags)
  from offpolicy_rl.transport import client

  return client.LearnerClient(
    address,
    sampler_id,
    reconnect_seconds=flags.patience,
    credentials=credentials,
    proxy=flags.proxy,
  )


def flags_of_local_samplers(flags: argparse.Namespace) -> list[str]:
  """Flags for local's samplers, which present the learner's own certificate; all are checked."""
  of_learner(flags)
  if not flags.tls_cert:
    return given(flags, ("token_file",))
  if not flags.tls_ca:
    raise config_lib.ConfigError("--tls_ca: missing, expected because --tls_cert is given")
  flags.tls_server_name = flags.tls_server_name or "localhost"
  of_client(flags)
  return given(flags, ("tls_cert", "tls_key", "tls_ca", "tls_server_name", "token_file"))


def given(flags: argparse.Namespace, names: Iterable[str]) -> list[str]:
  """The flags of these names that were given, for the command line of another process."""
  values = [(name, getattr(flags, name)) for name in names]
  values = [
    (name, value) for name, value in values if value not in (None, "") and value is not False
  ]
  return [f"--{name}" if value is True else f"--{name}={value}" for name, value in values]
