"""Completions that think first: the text after the thought is the answer.

A completion that was cut, or ends within a thought, has no answer. It earns nothing and has no
vote, unless `task.judge_unfinished` is set.
"""

# Earlier turns of an episode that would be written otherwise than they were read, most often
# without their thoughts (`environment.history`).
REFUSE, KEEP, REWRITE = HISTORIES = ("refuse", "keep", "rewrite")
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
  """The text behind the last closed thought; None in an open one."""
  for opening, closing in TAGS:
    completion = completion.rpartition(closing)[2]
    if opening in completion:
      return None
  return completion


def judged(
  completion: str, *, finished: bool, opened: str = "", judge_unfinished: bool = False
) -> str | None:
  """The text for the verifier; None if the completion has no answer and earns nothing.

  Args:
    finished: it ended by itself and was not cut at the length limit.
    opened: the tag by which its prompt opened a thought (`opened_by`).
    judge_unfinished: judge cut completions, and the inside of an open thought, too.
  """
  answered = removed(opened + completion) is not None
  if judge_unfinished and not answered:
    for opening, _ in TAGS:
      completion = completion.rpartition(opening)[2]
    return completion
  return completion if judge_unfinished or (finished and answered) else None
