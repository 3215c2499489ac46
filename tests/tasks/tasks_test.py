"""Vocabulary, the fixed tasks, and the noise of imports."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offpolicy_rl.tasks import catalog, prompts, scoring, verifiers
from offpolicy_rl.tasks.vocabulary import EOS, PAD, UNKNOWN, Vocabulary

PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.just("\n"), max_size=80)


@given(PRINTABLE, st.sampled_from([(), ("State: ", " +"), ("a", "ab", "aab", ".*", "0")]))
def test_text_survives_encoding_and_decoding(text, phrases):
  vocabulary = Vocabulary(phrases)
  ids = vocabulary.encode(text)
  assert vocabulary.decode(ids) == text
  assert all(UNKNOWN < i < vocabulary.size for i in ids)


def test_phrases_are_single_tokens_and_the_longest_wins():
  vocabulary = Vocabulary(("Add: ", " + ", " +", "12 + "))
  pieces = [vocabulary.pieces[i] for i in vocabulary.encode("Add: 12 + 345 +6 Add:")]
  assert pieces == ["Add: ", "12 + ", "3", "4", "5", " +", "6", " ", "A", "d", "d", ":"]


def test_decoding_stops_at_the_end_token_and_skips_padding():
  vocabulary = Vocabulary()
  ids = [PAD, *vocabulary.encode("7"), EOS, *vocabulary.encode("8")]
  assert vocabulary.decode(ids) == "7"


def test_every_token_has_a_text():
  vocabulary = Vocabulary(("Add: ",))
  ids = [*vocabulary.encode("Add: 7é"), EOS, PAD]
  assert vocabulary.token_texts(ids) == ["Add: ", "7", "<unk>", "<eos>", "<pad>"]


def test_unknown_characters_are_one_token_each():
  assert Vocabulary().encode("é∀") == [UNKNOWN, UNKNOWN]


def test_sizes_can_be_split_and_fingerprints_tell_vocabularies_apart():
  sizes = {task.vocabulary.size for task in catalog.TASKS.values()}
  assert all(size % 16 == 0 for size in sizes)
  prints = [task.vocabulary.fingerprint for task in catalog.TASKS.values()]
  assert len(set(prints)) == len(prints)
  assert Vocabulary(("a",)).fingerprint == Vocabulary(("a",)).fingerprint


@pytest.mark.parametrize("name", sorted(catalog.TASKS))
def test_splits_are_disjoint_complete_and_deterministic(name):
  task = catalog.TASKS[name]
  train = {p.question for p in task.split("train")}
  heldout = {p.question for p in task.split("heldout")}
  assert not train & heldout
  assert train | heldout == {p.question for p in task.problems()}
  assert 0.05 < len(heldout) / len(train | heldout) < 0.25
  assert [p.question for p in task.split("heldout")] == [p.question for p in task.split("heldout")]


@pytest.mark.parametrize("name", sorted(catalog.TASKS))
def test_demonstrations_satisfy_the_verifier_and_other_answers_do_not(name):
  task = catalog.TASKS[name]
  verify = scoring.resolve(task.verifier)
  for problem in task.split("heldout")[:50]:
    assert verify(problem.demonstration, problem.answer) == 1.0
    assert verify(problem.demonstration + "x", problem.answer) == 0.0
    assert verify("", problem.answer) == 0.0


def test_listing_candidates_earns_nothing():
  """The package's default scorer pays for text that contains the answer; ours does not."""
  problem = catalog.TASKS["chain_sum"].split("heldout")[0]
  everything = " ".join(map(str, range(-100, 200)))
  assert verifiers.reasoning_gym(everything, problem.answer) == 0.0


def test_examples_are_the_problems_of_the_catalog():
  task = catalog.TASKS["sums"]
  for split in ("train", "heldout"):
    made = prompts.tokenize(task.split(split), prompts.Rendering(task.vocabulary, 4))
    assert made.too_long == made.left_out == []
    for example, problem in zip(made.examples, task.split(split), strict=True):
      assert task.vocabulary.decode(example.prompt_tokens.tolist()) == problem.question
      assert example.demonstration_tokens[-1] == EOS
      assert task.vocabulary.decode(example.demonstration_tokens.tolist()) == problem.demonstration
      assert example.prompt_tokens.dtype == np.int32 and example.answer == problem.answer


def test_prompts_that_are_too_long_are_counted_not_cut():
  problems = catalog.TASKS["sums"].split("train")
  made = prompts.tokenize(problems, prompts.Rendering(catalog.TASKS["sums"].vocabulary, 3))
  assert made.examples == [] and len(made.too_long) == len(problems)
  assert made.too_long[0] == (problems[0].where, "4 tokens") and made.prompt_lengths[0] == 4


def test_native_noise_is_held_back_unless_something_fails(capfd):
  import os

  from offpolicy_rl.tasks import quiet

  with quiet.stderr_only_on_failure():
    os.write(2, b"noise")
  assert capfd.readouterr().err == ""
  with pytest.raises(RuntimeError), quiet.stderr_only_on_failure():
    os.write(2, b"a clue")
    raise RuntimeError
  assert capfd.readouterr().err == "a clue"
  os.write(2, b"heard again")
  assert capfd.readouterr().err == "heard again"
