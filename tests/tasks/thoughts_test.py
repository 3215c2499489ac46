"""What follows a thought is the answer; who is still in one has not answered."""

import pytest

from offpolicy_rl.tasks import thoughts

TEXTS = [
  ("5", "5"),
  ("<think>6</think> 5", " 5"),
  ("6 </think>5", "5"),  # opened by the prompt
  ("<think>a</think>b<think>c</think>d", "d"),
  ("<think>a<think>b</think>c", "c"),
  ("<think>5", None),
  ("<think>a</think>5<think>", None),
  ("</think><think>5", None),
  ("<thinking>a</thinking>5", "5"),
  ("<reasoning>a</reasoning>5", "5"),
  ("<reasoning>5", None),
  ("<think><thought>a</thought></think>5", "5"),
  ("<think><thought>a</thought>5", None),
  ("[THINK]a[/THINK]5", "5"),
  ("[THINK]5", None),
  ("", ""),
]


@pytest.mark.parametrize(("completion", "expected"), TEXTS)
def test_only_what_follows_the_last_closed_thought_counts(completion, expected):
  assert thoughts.removed(completion) == expected


@pytest.mark.parametrize(("opening", "closing"), thoughts.TAGS)
def test_every_tag_opens_and_closes(opening, closing):
  assert thoughts.removed(f"{opening}a{closing}5") == "5"
  assert thoughts.removed(f"{opening}a 5") is None
  assert thoughts.opened_by(f"Q: ?\n{opening}\n") == opening
  assert thoughts.opened_by(f"Q: ?{opening}\n\n{closing}\n\n") == ""
  assert thoughts.opened_by(f"Think within {opening}. Q: ?") == ""


@pytest.mark.parametrize(
  ("completion", "finished", "opened", "expected"),
  [
    ("5", True, "", "5"),
    ("5", False, "", None),
    ("5", True, "<think>", None),
    ("6</think>5", True, "<think>", "6</think>5"),  # a verifier sees thoughts, too
    ("6</think>5", False, "<think>", None),
    ("<think>5", True, "", None),
  ],
)
def test_what_was_cut_or_ends_in_a_thought_has_not_answered(completion, finished, opened, expected):
  assert thoughts.judged(completion, finished=finished, opened=opened) == expected


@pytest.mark.parametrize(
  ("completion", "expected"),
  [("5", "5"), ("<think>a 5", "a 5"), ("<think>6</think>5", "<think>6</think>5")],
)
def test_a_task_may_judge_what_has_not_answered(completion, expected):
  for finished in (True, False):
    judged = thoughts.judged(completion, finished=finished, judge_unfinished=True)
    assert judged == expected
