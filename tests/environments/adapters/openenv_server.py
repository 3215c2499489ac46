"""Servers of openenv: python -m tests.environments.adapters.openenv_server PORT KIND FOLDER.

KIND is echo, the environment that the package makes for beginners; guess, one of ours; tools.
"""

import random
import subprocess
import sys
import time

import uvicorn
from openenv.core.env_server.http_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from openenv.core.env_server.types import Action, Observation, State

SESSIONS = 24


class Guess(Action):
  number: int


class Hint(Observation):
  hint: str


class Guessing(Environment):
  """A number from 0 to 9; 13 sleeps, 14 raises."""

  SUPPORTS_CONCURRENT_SESSIONS = True
  state = State()

  def reset(self, seed=None, top=9, **_):
    self.number = random.Random(seed).randint(0, top)
    return Hint(hint=f"Guess a number from 0 to {top} that ends with {self.number % 2} in binary.")

  def step(self, action, timeout_s=None, **_):
    if action.number == 13:
      time.sleep(3)
    if action.number == 14:
      raise ArithmeticError("no such number")
    if action.number == self.number:
      return Hint(hint="right", reward=1, done=True)
    return Hint(hint="higher" if action.number < self.number else "lower", reward=0.25)


def echo(folder: str):
  subprocess.run(
    [sys.executable, "-m", "openenv.cli", "init", "echo_env", "-o", folder],
    check=True,
    capture_output=True,
  )
  sys.path.insert(0, folder)
  from echo_env.models import EchoAction, EchoObservation
  from echo_env.server.echo_env_environment import EchoEnvironment

  return EchoEnvironment, EchoAction, EchoObservation


def main():
  port, kind, folder = sys.argv[1:]
  kinds = {
    "echo": lambda: echo(folder),
    "guess": lambda: (Guessing, Guess, Hint),
    "tools": lambda: (Guessing, CallToolAction, CallToolObservation),
  }
  app = create_app(*kinds[kind](), env_name=kind, max_concurrent_envs=SESSIONS)
  uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
  main()
