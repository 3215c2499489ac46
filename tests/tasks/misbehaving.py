"""Verifiers that misbehave. Every worker of a pool imports them: nothing heavy is imported here."""

import json
import os
import re
import signal
import sys
import time

from offpolicy_rl.tasks import verifiers


class Unpicklable(Exception):
  def __init__(self, one, two):
    super().__init__(one)


class Untold(BaseException):
  def __str__(self):
    raise RuntimeError("no text")


def kill_oneself():
  os.kill(os.getpid(), signal.SIGKILL)


def allocate():
  return bytes(10 << 30)


def loop():
  while True:
    pass


def backtrack():
  """Stays in C, where no signal handler of Python gets a turn."""
  return re.match(r"(a+)+$", "a" * 60 + "b")


def raise_that(error):
  raise error


BAD = {
  "sleeps": lambda: time.sleep(60),
  "loops": loop,
  "backtracks": backtrack,
  "exits": lambda: sys.exit(0),
  "dies": lambda: os._exit(0),
  "kills itself": kill_oneself,
  "interrupts": lambda: raise_that(KeyboardInterrupt()),
  "takes 10 GiB": allocate,
  "raises": lambda: raise_that(RuntimeError("no")),
  "raises what can't be pickled": lambda: raise_that(Unpicklable("a", "b")),
  "raises what can't be told": lambda: raise_that(Untold()),
  "nan": lambda: float("nan"),
  "infinity": lambda: float("inf"),
  "more than a float32 holds": lambda: 1e300,
  "more than its square can be": lambda: -3e38,
  "a huge integer": lambda: 10**400,
  "text": lambda: "1.0",
  "nothing": lambda: None,
}


@verifiers.verifier
def misbehaves(completion: str, answer: str) -> float:
  if completion in BAD:
    return BAD[completion]()
  return float(completion == json.loads(answer))


@verifiers.verifier
def says_its_limit(completion: str, answer: str) -> float:
  import resource

  return resource.getrlimit(resource.RLIMIT_AS)[0] / 2**20


@verifiers.verifier
def returns_scalars(completion: str, answer: str) -> float:
  """1 as the type of NumPy that the completion names."""
  import numpy as np

  return getattr(np, completion)(1)


def not_a_verifier(completion: str, answer: str) -> float:
  return 1.0
