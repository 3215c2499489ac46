"""Completions that think first: which text after the thought is the answer, and which has none.

A completion that was cut, or whose thought is still open at its end, has not answered. It earns
nothing and has no vote, whatever stands in it, unless `task.judge_unfinished` is set.
"""

# Tags around thoughts, as published models and their prompts write them.
TAGS = (
  ("<think>", "</think>"),
  ("<thinking>", "</thinking>"),
  ("<thought>", "</thought>"),
  ("<reasoning>", "</reasoning>"),
  ("<seed:think>", "</seed:think>"),
  ("[THINK]", "[/THINK]"),
  ("◁think▷", "◁/think▷"),
  ("<|begin_of_thought|>", "<|end_of_thought|>"),
  ("<|START_THINKING|>", "<|END_THINKING|>"),
)
ALL_TAGS = frozenset(tag for pair in TAGS for tag in pair)


def opened_by(prompt: str) -> str:
  """The opening tag that the prompt ends with, "" for none: some chat templates write it."""
  end = prompt.rstrip()
  return next((opening for opening, _ in TAGS if end.endswith(opening)), "")


def removed(completion: str) -> str | None:
  """What follows the last thought that was closed; None while one is open."""
  for opening, closing in TAGS:
    completion = completion.rpartition(closing)[2]
    if opening in completion:
      return None
  return completion


def judged(
  completion: str, *, finished: bool, opened: str = "", judge_unfinished: bool = False
) -> str | None:
  """The text that a verifier gets; None = the completion has not answered and earns nothing.

  Args:
    finished: it ended by itself and was not cut at the length limit.
    opened: the tag by which its prompt opened a thought (`opened_by`).
    judge_unfinished: then an open thought is no matter either: what it holds is judged.
  """
  answered = removed(opened + completion) is not None
  if judge_unfinished and not answered:
    for opening, _ in TAGS:
      completion = completion.rpartition(opening)[2]
    return completion
  return completion if judge_unfinished or (finished and answered) else None
