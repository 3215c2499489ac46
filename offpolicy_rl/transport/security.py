"""Protection of the wire: TLS, client certificates, a token.

All of it comes in PEM and text files named by flags. The standard library's `ssl` checks them
before anything starts; gRPC itself would only say "Socket closed" much later.
"""

import dataclasses
import ipaddress
import logging
import os
import pathlib
import ssl
import time
from typing import Any

import grpc

_LOG = logging.getLogger(__name__)

MIN_TOKEN, MAX_TOKEN = 16, 4096  # characters
_EXPIRED, _NOT_YET_VALID, _WRONG_PURPOSE = 10, 9, 26  # verification errors of OpenSSL


class CredentialsError(ValueError):
  """A flag or file can't protect the wire; names it and says what was expected."""


@dataclasses.dataclass(frozen=True)
class Credentials:
  """Paths of the files that protect one end of the wire; None = without."""

  cert: str | None = None  # PEM: our own certificate, then its intermediates
  key: str | None = None  # PEM: the private key of `cert`, not encrypted
  ca: str | None = None  # PEM: who signs the other side's certificates
  token_file: str | None = None  # text: the bearer token
  server_name: str | None = None  # sampler: the name in the learner's certificate, if not its host


NONE = Credentials()


# ------------------------------------------------------------------ checks before anything starts


def check_learner(credentials: Credentials) -> None:
  """Raises CredentialsError when a learner cannot use these flags and files."""
  _need(credentials.key, "--tls_key", credentials.cert, "--tls_cert")
  _need(credentials.cert, "--tls_cert", credentials.key, "--tls_key")
  _need(credentials.cert, "--tls_cert", credentials.ca, "--tls_client_ca")
  _check_files(credentials, ca_flag="--tls_client_ca", is_server=True)


def check_sampler(credentials: Credentials) -> None:
  """Raises CredentialsError when a sampler cannot use these flags and files."""
  _need(credentials.key, "--tls_key", credentials.cert, "--tls_cert")
  _need(credentials.cert, "--tls_cert", credentials.key, "--tls_key")
  _need(credentials.ca, "--tls_ca", credentials.cert, "--tls_cert")
  _need(credentials.ca, "--tls_ca", credentials.server_name, "--tls_server_name")
  _check_files(credentials, ca_flag="--tls_ca", is_server=False)


def _need(needed, needed_flag: str, given, given_flag: str) -> None:
  if given and not needed:
    raise CredentialsError(f"{needed_flag}: missing, expected because {given_flag} is given")


def _check_files(credentials: Credentials, *, ca_flag: str, is_server: bool) -> None:
  if credentials.cert and credentials.key:
    _check_is_certificate("--tls_cert", credentials.cert)
    _check_pair(credentials.cert, credentials.key, is_server=is_server)
    _warn_if_open_to_all("--tls_key", credentials.key)
  if credentials.ca:
    _check_is_certificate(ca_flag, credentials.ca)
    _check_authority(ca_flag, credentials.ca)
  if credentials.token_file:
    read_token(credentials)
    _warn_if_open_to_all("--token_file", credentials.token_file)


def _read(flag: str, path: str | None) -> bytes:
  if path is None:
    raise CredentialsError(f"{flag}: missing, expected a file")
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise CredentialsError(
      f"{flag}: got {path!r}, expected a file that can be read ({error.strerror})"
    ) from None


def _warn_if_open_to_all(flag: str, path: str) -> None:
  if os.stat(path).st_mode & 0o004:
    _LOG.warning("%s: every user of this machine can read %s; expected mode 600", flag, path)


def _check_is_certificate(flag: str, path: str) -> None:
  _read(flag, path)
  try:
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
  except ssl.SSLError:
    raise CredentialsError(f"{flag}: got {path!r}, expected certificates in PEM format") from None


def _check_authority(flag: str, path: str) -> None:
  """At least one certificate of the file must be valid now; bundles may contain old ones."""
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
  context.load_verify_locations(path)
  authorities = context.get_ca_certs()
  if not authorities:
    raise CredentialsError(
      f"{flag}: got {path!r}, expected the certificate of an authority (CA:TRUE), not of a host"
    )
  ends = [ssl.cert_time_to_seconds(str(cert["notAfter"])) for cert in authorities]
  if max(ends) < time.time():
    raise CredentialsError(
      f"{flag}: {path!r} expired on {authorities[0]['notAfter']}, make a new one"
    )


def _check_pair(cert: str, key: str, *, is_server: bool) -> None:
  _read("--tls_key", key)
  server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
  try:
    for context in (server, client):
      # Without a password function OpenSSL asks the terminal for that of an encrypted key.
      context.load_cert_chain(cert, key, password=lambda: "")
  except ssl.SSLError as error:
    if error.reason == "KEY_VALUES_MISMATCH":
      expected = f"the private key of the certificate {cert!r}"
    else:
      expected = "a private key in PEM format that is not encrypted"
    raise CredentialsError(f"--tls_key: got {key!r}, expected {expected}") from None
  try:
    _shake_hands(server, client, judge=client if is_server else server, cert=cert)
  except ssl.SSLCertVerificationError as error:
    end = "a learner (serverAuth)" if is_server else "a sampler (clientAuth)"
    expected = {
      _EXPIRED: "one that is valid now; this one has expired",
      _NOT_YET_VALID: "one that is valid now; this one is not yet",
      _WRONG_PURPOSE: f"a certificate for {end}",
    }.get(error.verify_code)
    if expected:  # other errors, e.g. a missing intermediate, are up to the other side
      raise CredentialsError(f"--tls_cert: got {cert!r}, expected {expected}") from None


def _shake_hands(
  server: ssl.SSLContext, client: ssl.SSLContext, *, judge: ssl.SSLContext, cert: str
) -> None:
  """Shows the certificate, in memory, to an end that trusts it and nothing else.

  The standard library reads no dates from a file, but it checks them in a handshake.
  """
  client.check_hostname = False
  client.verify_mode, server.verify_mode = ssl.CERT_NONE, ssl.CERT_NONE
  judge.verify_mode = ssl.CERT_REQUIRED
  judge.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
  judge.load_verify_locations(cert)
  to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
  client_end = client.wrap_bio(to_client, to_server)
  server_end = server.wrap_bio(to_server, to_client, server_side=True)
  for _ in range(4):  # more rounds than a handshake has
    for end in (client_end, server_end):
      try:
        end.do_handshake()
      except ssl.SSLWantReadError:
        pass


# ------------------------------------------------------------------ where the learner may listen


def is_loopback(listen: str) -> bool:
  """Whether HOST:PORT can be reached from this machine only."""
  host = listen.rpartition(":")[0].strip("[]")
  try:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def check_listen_address(
  listen: str, credentials: Credentials = NONE, *, insecure: bool = False
) -> None:
  """Raises CredentialsError for unprotected serving beyond loopback, unless `insecure`."""
  missing = [] if credentials.cert else ["--tls_cert and --tls_key"]
  if not (credentials.token_file or (credentials.cert and credentials.ca)):
    missing.append("--token_file or --tls_client_ca")
  if missing and not insecure and not is_loopback(listen):
    raise CredentialsError(
      f"--listen: got {listen!r}, expected a loopback address such as 127.0.0.1:0, because the "
      f"stream is not protected: add {', and '.join(missing)}; or add --insecure to serve it as "
      "it is, on a network that you trust"
    )


def describe(credentials: Credentials, listen: str) -> str:
  """The learner's protection in a few words."""
  c = credentials
  files = {"TLS": c.cert, "client certificates": c.ca, "token": c.token_file}
  parts = [name for name, path in files.items() if path] or ["no credentials"]
  if is_loopback(listen):
    parts.insert(0, "loopback only")
  elif not c.cert:
    parts.insert(0, "NOT ENCRYPTED")
  return ", ".join(parts)


# ------------------------------------------------------------------ gRPC servers and channels


def read_token(credentials: Credentials) -> str | None:
  """The token of the file without surrounding white space; None without a file.

  CredentialsError if it can't be read, is too short, too long, or not printable ASCII.
  """
  path = credentials.token_file
  if path is None:
    return None
  token = _read("--token_file", path).strip()
  printable = all(0x21 <= byte <= 0x7E for byte in token)
  if not (printable and MIN_TOKEN <= len(token) <= MAX_TOKEN):  # never shown, not even in part
    raise CredentialsError(
      f"--token_file: got {len(token)} bytes in {path!r}, expected one token of {MIN_TOKEN} to "
      f"{MAX_TOKEN} printable characters, e.g. from: openssl rand -hex 32"
    )
  return token.decode("ascii")


def add_port(server: grpc.Server, listen: str, credentials: Credentials) -> int:
  """Binds the server; returns the port. RuntimeError when the address is taken."""
  if not credentials.cert:
    return server.add_insecure_port(listen)
  pair = (_read("--tls_key", credentials.key), _read("--tls_cert", credentials.cert))
  authority = _read("--tls_client_ca", credentials.ca) if credentials.ca else None
  protected = grpc.ssl_server_credentials(
    [pair], root_certificates=authority, require_client_auth=authority is not None
  )
  return server.add_secure_port(listen, protected)


def open_channel(address: str, credentials: Credentials, options: list) -> grpc.Channel:
  """A sampler's channel: encrypted if there is an authority, with the token if there is one."""
  if not credentials.ca:
    channel = grpc.insecure_channel(address, options=options)
  else:
    key = _read("--tls_key", credentials.key) if credentials.key else None
    cert = _read("--tls_cert", credentials.cert) if credentials.cert else None
    protected = grpc.ssl_channel_credentials(_read("--tls_ca", credentials.ca), key, cert)
    if credentials.server_name:
      options = [*options, ("grpc.ssl_target_name_override", credentials.server_name)]
    channel = grpc.secure_channel(address, protected, options=options)
  token = read_token(credentials)
  return channel if token is None else grpc.intercept_channel(channel, _Bearer(token))


class _Bearer(
  grpc.UnaryUnaryClientInterceptor,
  grpc.UnaryStreamClientInterceptor,
  grpc.StreamUnaryClientInterceptor,
  grpc.StreamStreamClientInterceptor,
):
  """Adds the token to every call. (gRPC's own call credentials refuse to work without TLS.)"""

  def __init__(self, token: str):
    self._entry = ("authorization", f"Bearer {token}")

  def _one(self, continuation, client_call_details, request):
    metadata = [*(client_call_details.metadata or ()), self._entry]
    return continuation(_with_metadata(client_call_details, metadata), request)

  def _several(self, continuation, client_call_details, request_iterator):
    return self._one(continuation, client_call_details, request_iterator)

  intercept_unary_unary = intercept_unary_stream = _one
  intercept_stream_unary = intercept_stream_stream = _several


def _with_metadata(details: Any, metadata: list) -> grpc.ClientCallDetails:
  changed: Any = grpc.ClientCallDetails()
  for name in ("method", "timeout", "credentials", "wait_for_ready", "compression"):
    setattr(changed, name, getattr(details, name))
  changed.metadata = metadata
  return changed
