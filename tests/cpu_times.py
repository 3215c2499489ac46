"""CPU seconds of every test, its processes included: which tests are worth taking apart.

Commands:
  make test ARGS="--cpu-times=times.tsv"
  .venv/bin/python -m tests.cpu_times times.tsv
"""

import collections
import os
import pathlib
import resource
import sys

import pytest

SHOWN = 25


def pytest_addoption(parser):
  """Adds --cpu-times."""
  parser.addoption("--cpu-times", metavar="FILE", help="append 'SECONDS<tab>TEST' for every test")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
  """Appends one line; fixtures that several tests share count for the first one."""
  before = _cpu_seconds()
  result = yield
  if out := item.config.getoption("--cpu-times"):
    line = f"{_cpu_seconds() - before:.2f}\t{item.nodeid}\n"
    with open(os.path.join(item.config.invocation_params.dir, out), "a") as file:
      file.write(line)
  return result


def _cpu_seconds() -> float:
  """User and system time of this process and of its children that have ended."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(x.ru_utime + x.ru_stime for x in used)


def summary(text: str) -> str:
  """The most expensive files and tests of what `--cpu-times` has written."""
  tests = collections.Counter()
  for line in text.splitlines():
    seconds, _, test = line.partition("\t")
    tests[test] += float(seconds)
  files = collections.Counter()
  for test, seconds in tests.items():
    files[test.partition("::")[0]] += seconds
  lines = [f"{tests.total():8.1f} s  {len(tests)} tests in {len(files)} files"]
  for table in (files, tests):
    lines += ["", *(f"{seconds:8.1f} s  {name}" for name, seconds in table.most_common(SHOWN))]
  return "\n".join(lines)


if __name__ == "__main__":
  print(summary(pathlib.Path(sys.argv[1]).read_text()))
