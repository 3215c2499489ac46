"""What a completion says before the text that ended it."""

import pytest

from offpolicy_rl.tasks import stop_texts, verifiers, vocabulary
from tests.tasks import small_tokenizers

PIECES = ["<x>", "<y>", "5", "5\n", " EN", "D", "漢"]


def said(tokens, *parts):
  decode = lambda tokens: "".join(PIECES[t] for t in tokens if t > 1)
  spell = lambda tokens: "".join(PIECES[t] for t in tokens)
  return stop_texts.before(tokens, parts, decode, spell)


@pytest.mark.parametrize(
  ("tokens", "parts", "text"),
  [
    ([2, 4, 5], ["END"], "5 "),
    ([2, 4, 5], [], "5 END"),
    ([2, 4, 0, 5], ["END"], "5 "),  # a special token between its letters
    ([2, 0], ["<x>"], "5"),
    ([0, 2, 1, 3, 0], ["\n<x>"], "55"),  # it begins within a token
    ([2, 1, 3, 0], ["y>5"], "5"),  # and within a special one, of which nothing is told
    ([6, 6, 0, 5], ["<x>D", "D"], "漢漢"),
    ([2, 4, 5], ["EN", " E"], "5"),  # the first of two
    ([2, 4], ["END"], "5 EN"),
    ([], ["END"], ""),
  ],
)
def test_what_comes_before_it(tokens, parts, text):
  assert said(tokens, *parts) == text


def test_verifiers_read_what_comes_before_the_stop_text():
  words = vocabulary.Vocabulary().stopping(["END"])
  tokens = words.encode("5 END")
  assert verifiers.exact(words.decode(tokens), '"5"') == 1.0
  assert words.decode([*words.encode("5"), words.eos, *words.encode("6 END")]) == "5"
  assert words.decode_all(tokens) == "5 END"


def test_a_character_in_bytes_before_a_stop_text_is_whole():
  """Before its last byte comes, some tokenizers show a sign for each: four bytes are longer."""
  inner = small_tokenizers.sentence_pieces({"<unk>": 0, "<end>": 1})
  special = lambda ids: inner.decode(list(ids), skip_special_tokens=False)
  for text in ("ab 😀", "é😀ab😀😀", "😀b", "😀", "ab"):
    ids = inner.encode(f"{text}<end>x", add_special_tokens=False).ids
    for stop in ("<end>x", f"{text[-1]}<end>"):
      found = stop_texts.before(ids, [stop], lambda ids: inner.decode(list(ids)), special)
      assert found == f"{text}<end>x".partition(stop)[0]
