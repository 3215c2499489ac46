"""Environments of several turns, and how a configuration finds one.

To bring your own, decorate a class of an importable module and name it in environment.name as
"module:class":

    from offpolicy_rl.environments import environment

    @environment.environment
    class GuessTheNumber:
      def reset(self, problem: str, seed: int) -> environment.Turn:
        self.number = json.loads(problem)
        return environment.Turn()

      def step(self, action: str) -> environment.Turn:
        if not action.isdecimal():  # a fresh policy says anything
          return environment.Turn("?")
        if int(action) == self.number:
          return environment.Turn(reward=1.0, done=True)
        return environment.Turn("<" if self.number < int(action) else ">")

An environment runs in a worker process. An exception ends its episode as failed.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from offpolicy_rl import types
from offpolicy_rl.tasks import named

MAX_TEXT = 1_000_000  # characters of a turn


class Turn(NamedTuple):
  """The environment's answer to the policy."""

  text: str = ""  # shown to the policy; not used when `done`
  reward: float = 0.0  # for the policy's turn before; an episode's reward is the sum
  done: bool = False  # the episode is over
  role: str = "user"  # of the text in a chat: "user" or "tool"
  more: tuple[str, ...] = ()  # texts of further messages with this role, after the first
  opening: str = ""  # of an agent's first request: {"messages": ..., "tools": ...}, JSON
  logprobs: bool = False  # an agent asks for those of the policy's next turn
  # Of an agent that has rewritten its conversation, what is behind the prompt: JSON, a list of
  # messages, in which a number is that turn of the policy, from 0. "" = it goes on.
  history: str = ""


class Sampled(NamedTuple):
  """A turn of the policy, as far as agents are told of it."""

  context: int  # tokens that the policy had read
  tokens: int  # of the turn
  cut: bool  # a limit ended it
  logprobs: tuple[tuple[str, float], ...] = ()  # (token's text, nats), if they were asked for


class Environment(Protocol):
  """One object plays one episode."""

  def reset(self, problem: str, seed: int) -> Turn:
    """Begins the episode; its text follows the prompt.

    Args:
      problem: the answer data of the task's problem, JSON.
      seed: the same for all completions of a group.
    """
    ...

  def step(self, action: str) -> Turn:
    """Answers the policy's turn, without the token that ended it."""
    ...


def environment[T: type](made_by: T) -> T:
  """Marks a class as an environment, so that environment.name may name it."""
  return named.mark(made_by, "environment")


def resolve(name: str, key: str = "environment.name") -> Callable[[], Environment]:
  """The class "module:class"; ValueError, which names the key, if it is none or no environment."""
  decorator = "environment.environment (offpolicy_rl.environments.environment)"
  found = named.resolve(name, "environment", key=key, decorator=decorator, kind="class")
  for method in ("reset", "step"):
    if not callable(getattr(found, method, None)):
      raise ValueError(f"{key}: got {name!r:.100}, expected a class with a method {method!r}")
  return found


def require_all(keys: Mapping[str, str]) -> None:
  """Raises ValueError as `resolve` does, or if an environment can't be used on this machine.

  `keys`: environment -> the key that names it.
  """
  for name, key in keys.items():
    found = resolve(name, key)
    try:
      named.require(found)
    except ValueError as error:
      raise ValueError(f"{key}: got {name}: {error}") from None


def checked(turn: object) -> Turn:
  """The turn with plain values; TypeError or ValueError names what is wrong with it."""
  if not isinstance(turn, Turn):
    raise TypeError(f"the environment returned {turn!r:.60}, expected an environment.Turn")
  item: Any = getattr(turn.reward, "item", None)  # a scalar of NumPy, JAX or PyTorch
  reward = turn.reward if item is None else item()
  most = types.MAX_VERDICT
  if not isinstance(reward, int | float) or not abs(reward) <= most:
    raise ValueError(f"reward: got {reward!r:.60}, expected a number from -{most:g} to {most:g}")
  texts = [turn.text, *turn.more, turn.opening, turn.history]
  for text in texts:
    if not isinstance(text, str):
      raise ValueError(f"text: got {text!r:.60}, expected a text")
  length = sum(map(len, texts))
  if length > MAX_TEXT:
    raise ValueError(f"text: got {length:,} characters, expected at most {MAX_TEXT:,}")
  if turn.role not in ("user", "tool"):
    raise ValueError(f"role: got {turn.role!r:.60}, expected user or tool")
  reward = float(np.float32(reward))  # as it is sent and recorded
  plain = str(turn.text), reward, bool(turn.done), turn.role, tuple(map(str, turn.more))
  return Turn(*plain, str(turn.opening), bool(turn.logprobs), str(turn.history))
