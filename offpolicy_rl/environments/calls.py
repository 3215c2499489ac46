"""Tool calls for clients of chats: the format of a model, and what it says before its calls."""

from offpolicy_rl.environments.tools import Call, Format, MalformedCall

_MARKS = ("<tool_call>", "```tool_code")  # of calls that may follow a text; others are a whole turn


def format_of(template: str) -> str:
  """The format in which a chat template asks for calls, one of `tools.FORMATS`; "" = of none."""
  if "<tool_call>" in template and "<function=" not in template:  # Qwen3-Coder has both
    return "hermes"
  return "llama3" if '"parameters"' in template and "ipython" in template else ""


def separated(text: str, form: Format) -> tuple[str, list[Call]]:
  """(what a turn says before its calls, the calls); a turn with malformed calls has none."""
  try:
    calls = form.parse(text)
  except MalformedCall:
    return text, []
  before = min((text.find(mark) for mark in _MARKS if mark in text), default=0)
  return (text[:before].strip(), calls) if calls else (text, [])
