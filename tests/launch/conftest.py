"""The fixture that all tests of launch/ share."""

import pytest

from tests.launch.desk import Desk


@pytest.fixture
def desk(tmp_path):
  """A PATH of its own for each test."""
  return Desk(tmp_path / "bin")
