"""Values of flags: text -> value, or argparse's error that says what was expected.

Checked before anything starts, because what is behind them is careless: a port of 70000 becomes
4464, and a number of seconds that is not a number never passes.
"""

import argparse
import ipaddress
import math
import re
import urllib.parse

MAX_PORT = 65_535
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")


def _refuse(text: str, expected: str):
  raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")


def number(text: str, *, positive: bool = False) -> float:
  """A finite number of at least 0, or above it."""
  expected = "a finite number above 0" if positive else "a finite number of at least 0"
  try:
    value = float(text)
  except ValueError:
    _refuse(text, expected)
  if not math.isfinite(value) or value < 0 or (positive and value == 0):
    _refuse(text, expected)
  return value


def positive(text: str) -> float:
  """A finite number above 0."""
  return number(text, positive=True)


def count(text: str, least: int = 1) -> int:
  """A whole number of at least `least`."""
  if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
    _refuse(text, f"a whole number of at least {least}")
  return int(text)


def index(text: str) -> int:
  """A whole number of at least 0."""
  return count(text, least=0)


def port(text: str) -> int:
  """0 to 65535; 0 is any free one."""
  if not _is_port(text, 0):
    _refuse(text, f"0 to {MAX_PORT}")
  return int(text)


def listen(text: str) -> str:
  """HOST:PORT to serve; port 0 is any free one."""
  host, _, number = text.rpartition(":")
  if not (_is_host(host) and _is_port(number, 0)):
    _refuse(text, _address("such as 127.0.0.1:0 or 0.0.0.0:50051", 0))
  return text


def is_peer(text: str) -> bool:
  """Whether it is a HOST:PORT to connect to."""
  host, _, number = text.rpartition(":")
  return _is_host(host) and _is_port(number, 1)


def peer(text: str) -> str:
  """HOST:PORT to connect to."""
  if not is_peer(text):
    _refuse(text, _address("such as learner.example:50051 or [::1]:50051", 1))
  return text


def coordinator(text: str) -> str:
  """The same, or auto."""
  return text if text == "auto" else peer(text)


def url(text: str, schemes: tuple[str, ...] = ("http", "https")) -> str:
  """http://HOST[:PORT], https too."""
  expected = " or ".join(f"{scheme}://HOST:PORT" for scheme in schemes)
  try:
    found = urllib.parse.urlsplit(text)
    host, at = found.hostname or "", found.port
  except ValueError:
    _refuse(text, expected)
  host = f"[{host}]" if ":" in host else host
  if found.scheme not in schemes or not _is_host(host) or at == 0:
    _refuse(text, expected)
  return text


def proxy(text: str) -> str:
  """http://HOST:PORT."""
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
