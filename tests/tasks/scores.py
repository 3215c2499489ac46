"""A scorer's judgements in short."""

from offpolicy_rl.tasks import scoring


def rewards(scorer: scoring.Scorer, texts: list[str], answer: str) -> tuple[list[float], int]:
  """(reward of each completion, number of failures)."""
  judgements = scorer.judgements(scorer.submit(texts, answer))
  return [j.reward for j in judgements], sum(j.failed for j in judgements)
