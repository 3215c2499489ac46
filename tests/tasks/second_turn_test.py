"""What the check at a run's start makes of templates: two answers, each before what is said."""

import pytest

from offpolicy_rl.tasks import thoughts, tokenizer, turns
from tests.tasks import small_tokenizers as small
from tests.tasks.turns_test import in_roles, of_family, with_template

ROLES = ("user", "tool")
PLAIN = "a:{{ m.content }}<e>"


@pytest.mark.parametrize("mode", thoughts.HISTORIES)
@pytest.mark.parametrize(
  ("earlier", "shown"),
  [
    ("a:{{ m.content | replace('3 + 3', '3+  3*') }}<e>", "3 + 3 = 6"),
    ("a:{{ m.content }}{{ '!' if loop.index0 > 1 }}<e>", "3 = 6<e>"),
    ("{{ 'b' if loop.index0 > 1 else 'a' }}:{{ m.content }}<e>", "a:3 + 3"),
    ("a:{{ m.content }}{{ '<r>' if loop.index0 > 1 }}<e>", "6<e>"),
  ],
)
def test_a_template_that_changes_only_the_second_answer_is_refused(tmp_path, mode, earlier, shown):
  words = with_template(tmp_path, in_roles(earlier, "a:"))
  for role in ROLES:
    with pytest.raises(tokenizer.TokenizerError, match=f"messages of role '{role}', it") as error:
      turns.check(words, mode, [role])
    assert shown in str(error.value).partition("expected")[2]


def test_a_thought_that_only_the_second_answer_loses_is_refused(tmp_path):
  earlier = "a:{{ m.content.split('</think>')[-1].strip() if loop.index0 == 3 else m.content }}<e>"
  words = with_template(tmp_path, in_roles(earlier, "a:"))
  with pytest.raises(tokenizer.TokenizerError, match=r"expected '.*<think>.*as the model has read"):
    turns.check(words, thoughts.REFUSE)
  for mode in (thoughts.KEEP, thoughts.REWRITE):
    turns.check(words, mode)


@pytest.mark.parametrize("mode", thoughts.HISTORIES)
def test_a_template_without_a_role_is_refused_where_it_is_needed(tmp_path, mode):
  strict = "{{ raise_exception('no tools here') if m.role == 'tool' }}"
  words = with_template(tmp_path, in_roles(PLAIN, "a:").replace("u:", f"{strict}u:"))
  turns.check(words, mode, ["user"])
  with pytest.raises(tokenizer.TokenizerError, match="role 'tool' .*: line 1: no tools here"):
    turns.check(words, mode, ROLES)


@pytest.mark.parametrize("mode", thoughts.HISTORIES)
def test_a_template_that_moves_what_was_said_is_refused(tmp_path, mode):
  """As those that write something into the last message only."""
  template = in_roles(PLAIN, "a:").replace("u:{{", "u:{{ 'Be brief. ' if loop.last }}{{")
  with pytest.raises(tokenizer.TokenizerError, match="chat template: "):
    turns.check(with_template(tmp_path, template), mode)


def test_the_token_that_ends_a_turn_may_begin_the_next_one(tmp_path):
  """As in GLM's templates, where it is another one before results of tools."""
  template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
  template += "{% if add_generation_prompt %}<assistant>{% endif %}"
  marks = ["<user>", "<tool>", "<assistant>", "<e>"]
  inner = small.byte_level({text: i for i, text in enumerate(marks, 1)})
  for ends, roles in (([1, 2, 4], ROLES), ([1, 4], ["user"]), ([2, 4], ["tool"])):
    settings = {"eos_token": "<e>", "chat_template": template}
    folder = tmp_path / str(ends)
    more = {"tokenizer_config": settings, "generation_config": {"eos_token_id": ends}}
    words = tokenizer.Tokenizer(tokenizer.read_files(small.write(folder, inner, **more)))
    turns.check(words, thoughts.REFUSE, roles)
    if len(roles) == 1:
      with pytest.raises(tokenizer.TokenizerError, match="sampler.stop may name others"):
        turns.check(words, thoughts.REFUSE, ROLES)


def test_a_merge_of_prompt_and_answer_is_not_refused(tmp_path):
  """The model goes on behind the prompt as it was read, so it can't sample the merged token."""
  words = with_template(tmp_path, in_roles("{{ m.content }}<e>", "").replace("\n", "1"))
  for role in ROLES:
    turns.check(words, thoughts.REFUSE, [role])
  text = words.chat([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "2"}])
  assert words.encode(text)[:4] != [*words.prompt("Q"), *words.encode("2")]


def test_other_tokens_than_those_of_the_template_are_refused(tmp_path, monkeypatch):
  """What the environment says has one way of being written."""
  monkeypatch.setitem(turns._TOLD, "user", (("the",), ("the",)))
  words = with_template(tmp_path, in_roles(PLAIN, "a:"))
  reply = words.reply
  split = lambda texts, role, last: [
    token for i in reply(texts, role, last) for token in spelled(words, i)
  ]
  words.reply = split
  with pytest.raises(tokenizer.TokenizerError, match=r"it writes \['.*'\], expected \['"):
    turns.check(words, thoughts.REFUSE)


def spelled(words, token: int) -> list[int]:
  """A token, or its letters one by one."""
  text = words.decode_special([token])
  return [token] if token in words.special else [i for c in text for i in words.encode(c)]


@pytest.mark.parametrize("mode", thoughts.HISTORIES)
def test_roles_are_checked_with_thinking_models_as_with_others(tmp_path, mode):
  words = of_family(tmp_path, "qwen3-0.6b")
  if mode == thoughts.REFUSE:
    with pytest.raises(tokenizer.TokenizerError, match="environment.history to keep or rewrite"):
      turns.check(words, mode, ROLES)
  else:
    turns.check(words, mode, ROLES)
