"""What several tests of the wire share."""

import pytest

from tests.transport.learners import Learner


@pytest.fixture
def learner():
  """A running one, without credentials."""
  learner = Learner()
  yield learner
  learner.stop()
