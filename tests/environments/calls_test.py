"""The format of a model's calls, by the chat templates that are published."""

import pytest

from offpolicy_rl.environments import calls, tools

FUNCTION = '{"name": <function-name>, "arguments": <args-json-object>}'
LLAMA = 'Environment: ipython ... {"name": function name, "parameters": dictionary of arguments}'


@pytest.mark.parametrize(
  ("template", "name"),
  [
    (f"return a json object within <tool_call></tool_call>: {FUNCTION}", "hermes"),
    ("<tool_call>\n<function=example_function_name>", ""),  # Qwen3-Coder
    (LLAMA, "llama3"),
    ("<start_of_turn>{{ role }}", ""),
  ],
)
def test_a_template_names_its_format(template, name):
  assert calls.format_of(template) == name
  assert not name or name in tools.FORMATS


@pytest.mark.parametrize(
  ("form", "text", "before"),
  [
    ("hermes", 'I add.\n<tool_call>{"name": "f", "arguments": {}}</tool_call> so', "I add."),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}</tool_call>', ""),
    ("llama3", ' {"name": "f", "parameters": {}}', ""),
    ("gemma", "Look: ```tool_code\nf()\n```", "Look:"),
    ("gemma", "[f()]", ""),
  ],
)
def test_a_text_before_calls_stays(form, text, before):
  assert calls.separated(text, tools.FORMATS[form]) == (before, [tools.Call("f", {})])


@pytest.mark.parametrize("text", ["plain ", "<tool_call>", '<tool_call>{"name": 3}</tool_call>'])
def test_what_is_no_call_stays_as_it_is(text):
  assert calls.separated(text, tools.FORMATS["hermes"]) == (text, [])
