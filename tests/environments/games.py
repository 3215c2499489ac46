"""Environments for tests: honest ones, and every kind that misbehaves."""

import json
import os
import time

from offpolicy_rl.environments import environment
from offpolicy_rl.environments.environment import Turn

_STEPS = []  # of all environments in this process


@environment.environment
class Adds:
  """Says the sum so far; over once it is the problem's number."""

  def reset(self, problem: str, seed: int) -> Turn:
    self.goal, self.sum = json.loads(problem), seed
    return Turn(f"{seed}")

  def step(self, action: str) -> Turn:
    self.sum += int(action)
    return Turn(f"{self.sum}", reward=0.5, done=self.sum == self.goal)


@environment.environment
class Misbehaves:
  """Does what the policy says; problem "reset" misbehaves at once."""

  def reset(self, problem: str, seed: int) -> Turn:
    self.steps = 0
    return self.step(json.loads(problem))

  def step(self, action: str):
    self.steps += 1
    _STEPS.append(action)
    if action == "hang":
      time.sleep(60)
    if action == "slow":
      time.sleep(0.5)
    if action == "die":
      os._exit(3)
    if action == "raise":
      raise RuntimeError("no such move")
    if action == "timeout":
      raise TimeoutError("no server")
    if action == "memory":
      self.hoard = bytearray(1 << 30)
    if action == "10 MB":
      return Turn("x" * 10_000_000)
    if action == "nan":
      return Turn(reward=float("nan"))
    if action == "text":
      return "not a turn"
    if action == "count":  # of all environments of the process: not the same when played again
      return Turn(str(len(_STEPS)))
    return Turn(f"{action}{self.steps}", done=action == "done")


class NotMarked:
  """Lacks the decorator."""


@environment.environment
class WithoutStep:
  """Lacks a method."""

  def reset(self, problem: str, seed: int) -> Turn:
    return Turn()
