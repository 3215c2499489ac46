"""Chat templates, rendered as transformers' `apply_chat_template` does, byte for byte.

They are foreign code, so jinja2's sandbox renders them, with the additions of transformers 5
(utils/chat_template_utils.py). One thing differs: `strftime_now` gives the day of the run and not
the time of the call, so that a prompt is the same whenever it is made.
"""

import datetime
import json
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from offpolicy_rl import types
from offpolicy_rl.tasks.special_tokens import SETTINGS, TokenizerError, expect, parse

TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
_DEFAULT, _TOOLS = "default", "tool_use"
_CALENDAR = "strftime_now"
_SOURCE = "<template>"  # what jinja2 calls a template that comes from no file


class Source(NamedTuple):
  """A template's text and the file that it is in."""

  text: str
  file: str


class _Generation(jinja2.ext.Extension):
  """{% generation %}, which marks what the model wrote, and changes nothing here."""

  tags: set[str] = {"generation"}  # noqa: RUF012, declared so by jinja2

  def parse(self, parser):
    """Calls `_pass_on` with the body as a block, so that variables set inside stay inside."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    call = self.call_method("_pass_on", [])
    return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _pass_on(self, caller) -> str:
    return caller()


class _Namespace(jinja2.utils.Namespace):
  """A namespace without names that begin with an underscore, which reach into Python."""

  def __init__(*args, **kwargs):
    self, *args = args  # `self` may be among the names
    names = dict(*args, **kwargs)
    for name in names:
      _refuse_underscore(name)
    jinja2.utils.Namespace.__init__(self, names)

  def __setitem__(self, name, value):
    _refuse_underscore(name)
    super().__setitem__(name, value)


def _refuse_underscore(name) -> None:
  if str(name).startswith("_"):
    raise jinja2.exceptions.SecurityError(f"namespace: {name!r} begins with an underscore")


class _Dict:
  """`dict` of templates; nothing of the class itself can be reached."""

  def __call__(self, *args, **kwargs) -> dict:
    return dict(*args, **kwargs)

  def fromkeys(self, *args) -> dict:
    return dict.fromkeys(*args)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
  # jinja2's filter would escape HTML and sort keys.
  return json.dumps(
    value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


def _raise(message) -> None:
  raise jinja2.TemplateError(message)


def _environment(day: datetime.date) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
  sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
  )
  sandbox.filters["tojson"] = _to_json
  midnight = datetime.datetime.combine(day, datetime.time())
  names: dict[str, Any] = {"raise_exception": _raise, _CALENDAR: midnight.strftime}
  names |= {"dict": _Dict(), "namespace": _Namespace}
  sandbox.globals |= names
  return sandbox


def source(files: types.ModelFiles, *, tools: bool) -> Source | None:
  """The template that transformers would use; None if the checkpoint has none.

  With `tools`, a checkpoint may have a special one. TokenizerError if there are several, and none
  for this case.
  """
  named = {_DEFAULT: Source(files.chat_template, TEMPLATE)} if files.chat_template else {}
  for name, text in parse(files.more_chat_templates, MORE_TEMPLATES).items():
    file = f"{MORE_TEMPLATES}/{name}.jinja"
    named[name] = Source(expect(text, str, file), file)
  if not named:
    named = _in_settings(parse(files.tokenizer_config, SETTINGS).get("chat_template"))
  if not named:
    return None
  chosen = (named.get(_TOOLS) if tools else None) or named.get(_DEFAULT)
  if chosen is None:
    raise TokenizerError(
      f"chat templates: got {', '.join(sorted(named))}, expected one that is called {_DEFAULT}"
    )
  return chosen


def depends_on_date(files: types.ModelFiles, *, tools: bool) -> bool:
  """Whether the template's text may depend on the day; arguments and errors as for `source`."""
  template = source(files, tools=tools)
  return template is not None and _CALENDAR in template.text


def _in_settings(templates) -> dict[str, Source]:  # one text, or several with names
  where = f"{SETTINGS}: chat_template"
  if not templates:
    return {}
  if isinstance(templates, str):
    return {_DEFAULT: Source(templates, where)}
  if isinstance(templates, list):
    rows = [expect(row, dict, where) for row in templates]
    templates = {expect(row.get("name"), str, where): row.get("template") for row in rows}
  named = expect(templates, dict, where)
  return {name: Source(expect(text, str, where), f"{where} {name}") for name, text in named.items()}


class ChatTemplate:
  """One template with its variables."""

  def __init__(self, template: Source, variables: dict, day: datetime.date):
    """Compiles a template; `variables`: besides the messages. TokenizerError names a bad line."""
    self._file = template.file
    self._variables = {"tools": None, "documents": None} | variables
    self._template = self._guarded(lambda: _environment(day).from_string(template.text))

  def render(self, messages: Sequence[dict], *, opened: bool, **more: Any) -> str:
    """The text of messages {"role", "content"}; `opened`: with the beginning of the model's turn.

    `more`: variables of this text only. TokenizerError names the line if the template does not take
    them.
    """
    variables = self._variables | {"messages": list(messages), "add_generation_prompt": opened}
    variables |= more
    return self._guarded(lambda: self._template.render(variables))

  def _guarded(self, call):
    try:
      return call()
    except jinja2.TemplateSyntaxError as error:
      raise TokenizerError(f"{self._file}: line {error.lineno}: {error.message}") from None
    except Exception as error:  # templates can divide by zero, recurse, add texts to numbers, ...
      frames = traceback.walk_tb(error.__traceback__)
      lines = [line for frame, line in frames if frame.f_code.co_filename == _SOURCE]
      place = f"line {lines[-1]}: " if lines else ""
      kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
      raise TokenizerError(f"{self._file}: {place}{kind}{error!s:.300}") from None
