"""Parameters of tests: some for every run, the others for `make test-long`."""

from collections.abc import Sequence

import pytest


def some(quick: Sequence, rest: Sequence) -> list:
  """All of both; those of `rest` are marked long. A tuple is the values of several arguments."""
  values = [x if isinstance(x, tuple) else (x,) for x in rest]
  return [*quick, *(pytest.param(*x, marks=pytest.mark.long) for x in values)]
