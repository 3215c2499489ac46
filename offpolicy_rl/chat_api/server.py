"""An HTTP server of the chat-completions interface, on the standard library.

    GET  BASE/models
    POST BASE/chat/completions    whole, or as server-sent events with "stream": true

A few clients at a time are served, by a thread each; most of the time they wait for the model.
"""

import contextlib
import hmac
import http.server
import json
import logging
import re
import select
import socket
import threading
from collections.abc import Generator, Iterator
from typing import Protocol
from urllib.parse import urlsplit

from offpolicy_rl.chat_api import requests, responses
from offpolicy_rl.chat_api.requests import RequestError

_LOG = logging.getLogger(__name__)
MAX_BODY = 4 << 20  # bytes
_MAX_CONNECTIONS = 256
_IDLE_SECONDS = 300.0  # of a connection; clients keep theirs and open new ones


class Backend(Protocol):
  """Answers requests."""

  def models(self, base: str, /) -> list[str]:
    """Names of the models under a base path, "/v1"; RequestError (404) if there is none."""
    ...

  def chat(self, base: str, request: requests.ChatRequest, /) -> Generator[responses.Part]:
    """Begins an answer; closing the generator ends it. RequestError if it can't be answered."""
    ...


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128

  def __init__(self, address: tuple[str, int], backend: Backend, key: str):
    if ":" in address[0]:
      self.address_family = socket.AF_INET6
    super().__init__(address, _Handler)
    self.backend, self.key = backend, key
    self.places = threading.BoundedSemaphore(_MAX_CONNECTIONS)

  def process_request(self, request, client_address) -> None:
    if self.places.acquire(blocking=False):
      super().process_request(request, client_address)
    else:
      self.shutdown_request(request)

  def process_request_thread(self, request, client_address) -> None:
    try:
      super().process_request_thread(request, client_address)
    finally:
      self.places.release()

  def handle_error(self, request, client_address) -> None:
    _LOG.debug("%s of %s failed", request, client_address, exc_info=True)  # mostly: gone


@contextlib.contextmanager
def serving(
  backend: Backend, *, host: str = "127.0.0.1", port: int = 0, key: str = ""
) -> Generator[str]:
  """Serves in the background; gives the URL without a path.

  Args:
    port: 0 = any free one.
    key: that clients have to send, as an API key; "" = none is needed.

  Raises:
    OSError: the address can't be used.
  """
  server = _Server((host.strip("[]"), port), backend, key)
  threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True, name="http").start()
  try:
    yield f"http://{host}:{server.server_address[1]}"
  finally:
    server.shutdown()
    server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  server_version, sys_version = "offpolicy-rl", ""
  timeout = _IDLE_SECONDS
  disable_nagle_algorithm = True

  @property
  def _served(self) -> _Server:
    assert isinstance(self.server, _Server)
    return self.server

  def log_message(self, format: str, *args) -> None:
    _LOG.debug(format, *args)

  def do_GET(self) -> None:
    """Lists the models."""
    self._answer(self._get)

  def do_POST(self) -> None:
    """Answers a chat."""
    self._answer(self._post)

  def _answer(self, respond) -> None:
    try:
      respond()
    except (ConnectionError, TimeoutError):
      self.close_connection = True
    except Exception as error:
      problem = _problem(error)
      self._send(problem.status, responses.error(problem))

  def _get(self) -> None:
    base, what = self._path()
    self._check_key()
    if what != "models":
      raise self._nowhere()
    self._send(200, responses.models(self._served.backend.models(base)))

  def _post(self) -> None:
    body = self._body()  # read in any case: the next request of this connection follows it
    base, what = self._path()
    self._check_key()
    if what != "chat/completions":
      raise self._nowhere()
    request = requests.parse(body)
    parts = self._served.backend.chat(base, request)
    with contextlib.closing(parts):
      if request.stream:
        self._stream(request, parts)
      else:
        heard = self._while_there(parts)
        shown = request.top_logprobs is not None
        self._send(200, responses.completion(heard, model=request.model, logprobs=shown))

  def _path(self) -> tuple[str, str]:
    """The base path and what is asked for there."""
    found = re.fullmatch(r"(.*/v1)/(models|chat/completions)/?", urlsplit(self.path).path)
    if found is None:
      raise self._nowhere()
    return found[1], found[2]

  def _nowhere(self) -> RequestError:
    there = "GET .../v1/models and POST .../v1/chat/completions"
    asked = f"{self.command} {urlsplit(self.path).path:.100}"
    return RequestError(f"path: got {asked}, expected {there}", status=404)

  def _check_key(self) -> None:
    key, given = self._served.key, self.headers.get("Authorization", "")
    if key and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
      raise RequestError("Authorization: expected Bearer and the key of this server", status=401)

  def _body(self) -> bytes:
    length = self.headers.get("Content-Length", "")
    if not re.fullmatch(r"[0-9]{1,18}", length):
      self.close_connection = True
      raise RequestError(f"Content-Length: got {length!r:.40}, expected the body's bytes")
    if int(length) > MAX_BODY:
      self.close_connection = True
      raise RequestError(f"body: got {length} bytes, expected at most {MAX_BODY}", status=413)
    body = self.rfile.read(int(length))
    # Pages of other sites can't send this type without asking first, which is not answered.
    kind = self.headers.get_content_type()
    if kind != "application/json":
      raise RequestError(f"Content-Type: got {kind!r:.60}, expected application/json")
    return body

  def _while_there(self, parts: Iterator[responses.Part]) -> Iterator[responses.Part]:
    for part in parts:
      if self._is_gone():
        raise ConnectionError("the client has gone")
      yield part

  def _is_gone(self) -> bool:
    look = select.poll()  # `select.select` refuses descriptors above 1023
    look.register(self.connection, select.POLLIN)
    return bool(look.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)

  def _stream(self, request: requests.ChatRequest, parts: Iterator[responses.Part]) -> None:
    shown = request.top_logprobs is not None
    rows = responses.chunks(parts, model=request.model, logprobs=shown, usage=request.include_usage)
    self.close_connection = True  # its end is the end of the events
    self.send_response(200)
    self.send_header("Content-Type", "text/event-stream; charset=utf-8")
    self.send_header("Cache-Control", "no-cache")
    self.send_header("Connection", "close")
    self.end_headers()
    try:
      for row in rows:
        self._event(_json(row))
    except (ConnectionError, TimeoutError):
      raise
    except Exception as error:  # the status has been sent
      self._event(_json(responses.error(_problem(error))))
    self._event(b"[DONE]")

  def _event(self, data: bytes) -> None:
    self.wfile.write(b"data: " + data + b"\n\n")

  def _send(self, status: int, body: dict) -> None:
    data = _json(body)
    self.send_response(status)
    self.send_header("Content-Type", "application/json; charset=utf-8")
    self.send_header("Content-Length", str(len(data)))
    if self.close_connection:
      self.send_header("Connection", "close")
    self.end_headers()
    self.wfile.write(data)


def _problem(error: Exception) -> RequestError:
  """The error as a client is told of it; logs what is no refusal."""
  if isinstance(error, RequestError):
    return error
  _LOG.error("a request failed", exc_info=error)
  return RequestError(f"{type(error).__name__}: {error!s:.200}", status=500)


def _json(body: dict) -> bytes:
  # Half of a surrogate pair, which a call's arguments may have, becomes JSON's escape for it.
  return json.dumps(body, ensure_ascii=False).encode(errors="backslashreplace")
