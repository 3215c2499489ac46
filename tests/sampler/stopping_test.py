"""Where a text appears among tokens that come a few at a time."""

import numpy as np
import pytest

from offpolicy_rl.sampler.stopping import Stops

PIECES = ["a", "b", "ab", "\n", "", "end"]
STOPS = Stops((0,), ("\n\n", "abend"), lambda tokens: "".join(PIECES[t] for t in tokens))


@pytest.mark.parametrize(
  ("tokens", "length"),
  [
    ([3, 3], 2),
    ([0, 3, 1, 3, 4, 3, 0], 6),  # a token without text between
    ([0, 2, 5, 3, 3], 3),
    ([0, 0, 1, 5], 4),  # completed over three tokens
    ([0, 1, 0, 3, 5], None),
    ([], None),
  ],
)
def test_the_completion_ends_with_the_token_that_completes_the_text(tokens, length):
  for chunk in (1, 2, 5):
    found, looked_at = None, 0
    while found is None and looked_at < len(tokens):
      upto = min(looked_at + chunk, len(tokens))
      found = STOPS.length(tokens[:upto], looked_at)
      looked_at = upto
    assert found == length


def test_random_texts_end_where_the_whole_text_says():
  rng = np.random.default_rng(0)
  for _ in range(300):
    tokens = rng.integers(0, 6, 30).tolist()
    ends = lambda text: any(stop in text for stop in STOPS.texts)
    expected = next((n for n in range(1, 31) if ends(STOPS.decode(tokens[:n]))), None)
    looked_at, found = 0, None
    while found is None and looked_at < 30:
      upto = min(30, looked_at + int(rng.integers(1, 9)))
      found, looked_at = STOPS.length(tokens[:upto], looked_at), upto
    assert found == expected


SPECIAL = ["<x>", "E", "N", "D"]
SPELLED = Stops(
  (),
  ("END", "D<x>", "N<x>D"),
  lambda tokens: "".join(SPECIAL[t] for t in tokens if t),
  lambda tokens: "".join(SPECIAL[t] for t in tokens),
)


@pytest.mark.parametrize(
  ("tokens", "length"),
  [
    ([2, 3, 0, 1], 3),  # a special token is a part of the text
    ([1, 2, 0, 3], 4),  # it is in one text, and comes between the letters of another
    ([1, *[0] * 100, 2, *[0] * 100, 3, 1], 203),  # they say nothing, and the text may be far apart
    ([0, 1, 2, 2], None),
  ],
)
def test_a_special_token_hides_no_text(tokens, length):
  for chunk in (1, 3, 300):
    looked_at, found = 0, None
    while found is None and looked_at < len(tokens):
      upto = min(looked_at + chunk, len(tokens))
      found, looked_at = SPELLED.length(tokens[:upto], looked_at), upto
    assert found == length


def test_without_texts_nothing_is_decoded():
  assert Stops((0,)).length([1, 2, 3], 0) is None
