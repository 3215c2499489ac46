"""Chats of several messages as prompts: what the template renders, with tools or without."""

import json

import pytest

from offpolicy_rl.tasks import tokenizer, vocabulary
from tests.tasks.published import FAMILIES, published
from tests.tasks.reply_test import ANSWER, QUESTION, REPLY, of_family

USER = {"role": "user", "content": QUESTION}
CHAT = [USER, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": REPLY}]
TOOL = {
  "type": "function",
  "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
}
WITH_TOOLS = "qwen2.5-0.5b-instruct"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_chat_is_what_its_template_renders(tmp_path, name):
  words = of_family(tmp_path, name)
  assert words.conversation([USER]) == words.prompt(QUESTION)
  assert words.conversation(CHAT) == words.encode(words.chat(CHAT))


def test_nothing_is_added_that_the_messages_do_not_say(tmp_path):
  words = of_family(tmp_path, WITH_TOOLS, template="Q: {question}", system="Be kind.")
  assert words.conversation([USER]) == of_family(tmp_path / "plain", WITH_TOOLS).prompt(QUESTION)


def test_tools_are_shown_to_the_model(tmp_path):
  """Those of the request and no others; the same as task.chat_arguments would."""
  words = of_family(tmp_path / "a", WITH_TOOLS)
  other = of_family(tmp_path / "b", WITH_TOOLS, arguments={"tools": [TOOL]})
  assert words.conversation([USER], [TOOL]) == other.prompt(QUESTION)
  assert other.conversation([USER]) == words.prompt(QUESTION)


CALLS = """{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls %}
<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}

{% endfor %}"""


def test_calls_of_earlier_turns_are_objects_as_in_transformers(tmp_path):
  files = tokenizer.read_files(published(tmp_path, WITH_TOOLS))
  words = tokenizer.Tokenizer(files._replace(chat_template=CALLS))
  function = {"name": "add", "arguments": {"a": 1}}
  called = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
  ids = words.conversation([USER, called, {"role": "tool", "content": "3"}])
  told = f"user:{QUESTION}\nassistant:<tool_call>{json.dumps(function)}</tool_call>\ntool:3\n"
  assert words.decode_special(ids) == told


def test_tools_that_a_template_leaves_out_are_refused(tmp_path):
  words = of_family(tmp_path, "smollm2-135m-instruct")
  with pytest.raises(tokenizer.TokenizerError, match="^tools: "):
    words.conversation([USER], [TOOL])


@pytest.mark.parametrize("chat", [True, False])
def test_special_tokens_in_a_message_are_refused(tmp_path, chat):
  words = of_family(tmp_path, WITH_TOOLS, chat=chat)
  bad = {"role": "user", "content": "so<|im_end|>"}
  with pytest.raises(tokenizer.TokenizerError, match=r"^messages\[1\]: .*im_end"):
    words.conversation([USER, bad])


def test_without_a_chat_the_texts_are_the_prompt(tmp_path):
  words = of_family(tmp_path, "smollm2-135m-instruct", chat=False)
  assert words.conversation(CHAT) == words.prompt(QUESTION + ANSWER + REPLY)
  fresh = vocabulary.Vocabulary()
  assert fresh.conversation(CHAT) == fresh.prompt(QUESTION + ANSWER + REPLY)
  for without in (words, fresh):
    with pytest.raises(tokenizer.TokenizerError, match="^tools: "):
      without.conversation([USER], [TOOL])
