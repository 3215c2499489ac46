"""Does the learner's server survive nonsense?

Command:  python -m benchmarks.fuzz --minutes=5 --seed=0
Sends damaged and random messages to every method of a live server, most of them under a right
checksum, with a good sampler at work in between. Writes results/fuzz.json and prints one line; the
exit code is 1 when anything went wrong: a hang, an unexpected end of a call, a bad group in the
ledger, a good sampler that failed, threads or memory that grew.
"""

import argparse
import collections
import json
import logging
import pathlib
import random
import sys
import threading
import time

from benchmarks.demo_seeds import machine
from tests.transport import fuzzing

RESULTS = pathlib.Path(__file__).parent / "results"
ROUND = 500  # calls between two visits of the good sampler
MEMORY_MB = 20  # allowed growth after the first rounds


def run(minutes: float, seed: int) -> dict:
  """What was sent and what became of it."""
  rng, target = random.Random(seed), fuzzing.Target()
  outcomes, failures, rounds = collections.Counter(), 0, 0
  fuzzing.bombard(target, random.Random(-1), 2 * ROUND)  # threads and caches are there now
  before = {"threads": threading.active_count(), "memory_mb": round(fuzzing.resident_mb(), 1)}
  end = time.monotonic() + 60 * minutes
  while time.monotonic() < end:
    outcomes += fuzzing.bombard(target, rng, ROUND)
    failures += not target.works(f"good/{rounds}")
    rounds += 1
    target.renew()
  after = {"threads": threading.active_count(), "memory_mb": round(fuzzing.resident_mb(), 1)}
  audit = target.book.audit()
  return {
    "calls": sum(outcomes.values()),
    "outcomes": dict(outcomes.most_common()),
    "unexpected": sum(fuzzing.unexpected(outcomes).values()),
    "groups_accepted": target.accepted,
    "bad_groups": target.bad_groups,
    "good_sampler": {
      "visits": rounds,
      "failures": failures,
      "leased_an_expired_one": target.other_leased,
    },
    "before": before,
    "after": after,
    "audit": audit,
    "stopped": target.close(),
  }


def is_well(found: dict) -> bool:
  """Whether nothing went wrong."""
  return (
    not (found["unexpected"] or found["bad_groups"] or found["good_sampler"]["failures"])
    and found["after"]["memory_mb"] <= found["before"]["memory_mb"] + MEMORY_MB
    and found["after"]["threads"] <= found["before"]["threads"] + fuzzing.CALL_THREADS
    and found["stopped"]
  )


def main() -> int:
  """Runs and reports."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--minutes", type=float, default=5.0)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  logging.getLogger("offpolicy_rl").setLevel(logging.ERROR)
  found = run(arguments.minutes, arguments.seed)
  command = " ".join(["python -m benchmarks.fuzz", *sys.argv[1:]])
  RESULTS.mkdir(exist_ok=True)
  (RESULTS / "fuzz.json").write_text(
    json.dumps({"machine": machine(), "command": command, "well": is_well(found)} | found, indent=1)
    + "\n"
  )
  print(
    f"{'well' if is_well(found) else 'NOT WELL'}: {found['calls']} calls {found['outcomes']}, "
    f"{found['unexpected']} unexpected, {found['bad_groups']} bad groups of "
    f"{found['groups_accepted']} accepted, {found['before']} -> {found['after']}"
  )
  return 0 if is_well(found) else 1


if __name__ == "__main__":
  sys.exit(main())
