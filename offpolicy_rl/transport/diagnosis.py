"""Diagnosis of connections that can't work, however long a sampler waits.

gRPC reports a refused handshake as UNAVAILABLE, "Socket closed", like a learner that is away for a
moment. So a sampler that can't connect opens a connection itself and reads what TLS says.
"""

import socket
import ssl
import time

from offpolicy_rl.transport import security

_SECONDS = 5.0  # for one attempt
_PAUSE_SECONDS = 0.5  # between two that must end alike
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and empty SETTINGS
_CLOSED = (
  "the learner closed the connection after the TLS handshake, as it does when the sampler's "
  "certificate (--tls_cert) is missing, expired or signed by another authority than its "
  "--tls_client_ca"
)


def lasting_problem(address: str, credentials: security.Credentials) -> str | None:
  """The change that a sampler needs before it can connect; None if waiting may help."""
  host, _, port = address.rpartition(":")
  if not port.isdecimal():
    return None
  peer = (host.strip("[]"), int(port))
  attempt = (lambda: _with_tls(peer, credentials)) if credentials.ca else (lambda: _without(peer))
  if (problem := attempt()) is None:
    return None
  # Twice, because a learner that stops closes connections, and bytes get damaged.
  time.sleep(_PAUSE_SECONDS)
  return problem if attempt() == problem else None


def _without(peer: tuple[str, int]) -> str | None:
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
  context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
  try:
    with socket.create_connection(peer, _SECONDS) as raw, context.wrap_socket(raw):
      return "the learner speaks TLS; give the sampler --tls_ca, the authority of its certificate"
  except (OSError, ValueError):  # ssl.SSLError is one; a name that no host can have is another
    return None


def _with_tls(peer: tuple[str, int], credentials: security.Credentials) -> str | None:
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
  context.set_alpn_protocols(["h2"])
  try:
    context.load_verify_locations(credentials.ca)
    if credentials.cert:
      context.load_cert_chain(credentials.cert, credentials.key)
  except OSError:  # the channel has read them at the start; they may be replaced just now
    return None
  name, connected = credentials.server_name or peer[0], False
  try:
    raw = socket.create_connection(peer, _SECONDS)
    with raw, context.wrap_socket(raw, server_hostname=name) as end:
      connected = True  # to the learner, by its certificate
      end.sendall(_PREFACE)
      # A server checks our certificate after the handshake is over for us.
      return None if end.recv(1) else _CLOSED
  except ssl.SSLCertVerificationError as error:
    return (
      f"the learner's certificate is not accepted: {error.verify_message} (--tls_ca="
      f"{credentials.ca}, expected name {name}; --tls_server_name expects another)"
    )
  except (ssl.SSLEOFError, ConnectionResetError, BrokenPipeError):
    # Before that it may be a load balancer whose learner is away, or a full learner.
    return _CLOSED if connected else None
  except ssl.SSLError as error:
    if error.reason == "WRONG_VERSION_NUMBER":
      return "the learner does not speak TLS; leave out --tls_ca, or give the learner --tls_cert"
    return f"TLS: {error.reason}"
  except (OSError, ValueError):
    return None
