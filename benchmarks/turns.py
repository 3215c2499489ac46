"""How busy are the slots while a world thinks? Against held slots, and histories computed anew.

Command:  python -m benchmarks.turns              (5 idle minutes; --quick: 2)
A small model with random parameters, 16 slots. Episodes have 8 turns of about 15 tokens; the world
answers each after 50 ms with 16 tokens. Four engines answer the same tickets, in turn: two begin
four times and twice as many episodes as they have slots, one no more than it has slots, so that
each slot waits with its episode, and one computes the whole history anew in each turn.

Seconds are those of a core without neighbours: the process keeps to one, counts its CPU time, and
skips over waits instead of sleeping.

Three more engines have their worlds in processes, as runs do, by the clock on the wall: each
process answers for one episode at a time, so few of them are the limit. Writes results/turns.json.
"""

import argparse
import dataclasses
import functools
import heapq
import itertools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import sampler, turns_world
from benchmarks.machine import machine
from offpolicy_rl import types
from offpolicy_rl.environments import episodes, processes
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.model import policy
from offpolicy_rl.sampler import engine as engine_lib
from offpolicy_rl.sampler import sizing, stopping
from offpolicy_rl.system import memory

RESULTS = pathlib.Path(__file__).parent / "results"
TURNS, TURN_TOKENS = 8, 32
MOST_TOKENS = TURNS * (TURN_TOKENS + turns_world.REPLY_TOKENS)
WORLD = "benchmarks.turns_world:Waiting"
SLOTS = 16


class World:
  """In place of processes: answers so many seconds after it was asked, many at a time."""

  def __init__(self):
    self._skipped, self._number = 0.0, itertools.count()
    self._due: list[tuple[float, int]] = []

  def now(self) -> float:
    """CPU time of this process and the waits that were skipped."""
    return time.process_time() + self._skipped

  def begin(self, _name: str, _problem: str, _seed: int) -> int:
    """Begins an episode."""
    played = next(self._number)
    self.act(played, "")
    return played

  def act(self, played: int, _action: str, _sampled: object = None) -> None:
    """Takes a turn."""
    heapq.heappush(self._due, (self.now() + turns_world.SECONDS, played))

  def answers(self, seconds: float) -> list[tuple[int, Turn]]:
    """The answers that are due."""
    if self._due:
      self._skipped += min(seconds, max(0.0, self._due[0][0] - self.now()))
    found = []
    while self._due and self._due[0][0] <= self.now():
      found.append((heapq.heappop(self._due)[1], turns_world.TURN))
    return found

  def end(self, played: int) -> None:
    """Lets go of an episode."""

  def close(self) -> None:
    """Nothing to end."""


class Processes(processes.Processes):
  """The worlds of a run."""

  def __init__(self, number: int):
    super().__init__({WORLD: "WORLD"}, processes=number, seconds=10.0, memory_mb=0)

  now = staticmethod(time.monotonic)


class Words:
  """A token per character; of what the policy says only the tokens are counted."""

  def __init__(self):
    self.sampled = 0

  def decode(self, ids) -> str:
    """Nothing."""
    self.sampled += len(ids)
    return ""

  def decode_special(self, _ids) -> str:
    """Nothing."""
    return ""

  def reply(self, texts, _role: str, _last) -> list[int]:
    """Tokens of the world."""
    return [ord(letter) for text in texts for letter in text]


class Anew(engine_lib.Engine):
  """Forgets the history of a completion that waits."""

  def _wait(self, completion, episode, span) -> None:
    super()._wait(completion, episode, span)
    tokens = self._sizes.page_tokens
    completion.cached = completion.group.shared(tokens) * tokens


WAYS = {  # engine, episodes begun at a time, world
  "four times the slots": (engine_lib.Engine, 4 * SLOTS, World),
  "twice the slots, the default": (engine_lib.Engine, 2 * SLOTS, World),
  "the slot is held": (engine_lib.Engine, SLOTS, World),
  "history anew, four times the slots": (Anew, 4 * SLOTS, World),
  "four times the slots, 2 processes": (engine_lib.Engine, 4 * SLOTS, lambda: Processes(2)),
  "four times the slots, 16 processes": (engine_lib.Engine, 4 * SLOTS, lambda: Processes(16)),
  "four times the slots, 32 processes": (engine_lib.Engine, 4 * SLOTS, lambda: Processes(32)),
}


def _tickets(config, first: int) -> list[types.Ticket]:
  return [dataclasses.replace(t, environment=WORLD) for t in sampler.tickets(config, 1, first)]


class Way:
  """An engine that never lacks tickets."""

  def __init__(self, config, params, kind: type[engine_lib.Engine], begun: int, world: Callable):
    self._world: Any = world()
    self._words: Any = Words()
    limits = episodes.Limits(MOST_TOKENS, TURNS, TURN_TOKENS)
    self._engine = kind(
      config,
      sizing.Sizes(
        slots=SLOTS,
        group_size=sampler.GROUP_SIZE,
        max_prompt_tokens=sampler.PROMPT,
        max_tokens=MOST_TOKENS,
        episodes=begun,
      ),
      stops=stopping.Stops(tuple(range(config.vocab_size // 16))),
      seed=0,
      episodes=episodes.Episodes(lambda: self._world, lambda _: self._words, limits, seed=0),
    )
    self._tickets = map(functools.partial(_tickets, config), itertools.count())
    self._params = params

  def close(self) -> None:
    """Ends its world."""
    self._world.close()

  def run(self, seconds: float) -> dict[str, float]:
    """Share of busy slots, and tokens of the policy's turns per second."""
    engine, now, words = self._engine, self._world.now, self._words
    start = before = now()
    busy, sampled = 0.0, words.sampled
    while before - start < seconds:
      while engine.room >= sampler.GROUP_SIZE:
        engine.add(next(self._tickets))
      engine.step(self._params, 0)
      before, since = now(), before
      busy += engine.busy * (before - since)
    took = before - start
    return {"busy": busy / SLOTS / took, "tokens_per_second": (words.sampled - sampled) / took}


def measured(seconds: float, rounds: int) -> dict[str, dict[str, list[float]]]:
  """For each way and figure a value per round."""
  config = sampler.model(quick=True)
  params = policy.init(config, jax.random.key(0))
  ways = {name: Way(config, params, *way) for name, way in WAYS.items()}
  for way in ways.values():
    way.run(seconds)  # compiles; episodes are of all ages
  found = {name: [] for name in ways}
  for _, (name, way) in itertools.product(range(rounds), ways.items()):
    found[name].append(way.run(seconds))
  for way in ways.values():
    way.close()
  return {
    name: {key: [values[key] for values in rows] for key in rows[0]} for name, rows in found.items()
  }


def main() -> None:
  """Measures, prints, writes."""
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX makes its threads
  memory.keep_freed_memory()
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quick", action="store_true")
  quick = parser.parse_args().quick
  found = measured(*(3.0, 3) if quick else (5.0, 5))
  print(f"{machine()}, one of them")
  for name, figures in found.items():
    busy, tokens = figures["busy"], figures["tokens_per_second"]
    print(
      f"{name:35} slots busy {statistics.median(busy):.3f} ({min(busy):.3f} to {max(busy):.3f}), "
      f"{statistics.median(tokens):.0f} tokens/s ({min(tokens):.0f} to {max(tokens):.0f})"
    )
  if not quick:
    report = {
      "machine": machine(),
      "world_seconds": turns_world.SECONDS,
      "turns": TURNS,
      "ways": found,
    }
    (RESULTS / "turns.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
  main()
