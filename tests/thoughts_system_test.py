"""Runs of several turns in which a template drops earlier thoughts: killed, resumed, replayed."""

import pytest

from offpolicy_rl.observe import metrics
from tests.roles.teacher_test import published
from tests.run_system import kill_resume_replay, train_rows
from tests.turns_system_test import GUESS

# Opens a thought for each turn; writes earlier ones without it, or without the tag of an open one.
TEMPLATE = (
  "{% for m in messages %}"
  "{% if m.role == 'assistant' %}a:{{ m.content.split('</think>')[-1].split('<think>')[-1] }}<eos>"
  "{% else %}u:{{ m.content }}{% endif %}"
  "{% endfor %}"
  "{% if add_generation_prompt %}a:<think>{% endif %}"
)
SETTINGS = [
  f"--config.task.name={GUESS}:guess_the_number",
  f"--config.environment.name={GUESS}:GuessTheNumber",
  "--config.environment.history=rewrite",
  "--config.environment.max_turns=3",
  "--config.environment.max_turn_tokens=3",
  "--config.task.max_prompt_tokens=24",
  "--config.task.max_completion_tokens=60",
  "--config.task.verifier=",
  "--config.learner.layout=shared",
  "--config.warm_start.steps=0",
]


@pytest.fixture
def settings(tmp_path):
  model = published(tmp_path / "model", special=("<eos>", "<think>", "</think>"))
  (model / "chat_template.jinja").write_text(TEMPLATE)
  return [*SETTINGS, f"--config.model.checkpoint={model}"]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_contexts_that_go_back_are_resumed_and_replayed_to_the_bit(tmp_path, settings):
  gone = "--config.environment.name=nowhere:Gone"
  found, expected = kill_resume_replay(tmp_path, settings, {9: "s", 19: "b"}, gone)
  texts = [c for row in metrics.read_lines(found / "completions.jsonl") for c in row["completions"]]
  assert sum(len(c.get("rewinds", ())) for c in texts) > 20
  checked = train_rows(expected)  # sampler and learner agree on what was read
  assert max(row.get("mismatch/max", 0.0) for row in checked) <= 1e-4
  assert sum(row.get("mismatch/tokens", 0) for row in checked) > 0
