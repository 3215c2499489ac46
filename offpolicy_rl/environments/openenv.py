"""Environments that an OpenEnv server plays, https://github.com/meta-pytorch/OpenEnv.

An episode is a session of the server's WebSocket: JSON messages, as openenv 0.10 reads and writes
them. A problem is a seed; its question is the server's first observation.
"""

import contextlib
import functools
import importlib
import json
import urllib.request
from typing import Any

from offpolicy_rl.environments import adapted, environment
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.tasks import catalog, sources, splits
from offpolicy_rl.tasks.rows import TaskError

_SECONDS = 5.0  # for one answer; below environment.seconds, so that the process outlives a server
_MOST_BYTES = 4 << 20  # of an answer
_OPTIONS = {"reset": dict, "text": str, "seconds": float}
_OF_TOOLS = {"Action", "CallToolAction", "ListToolsAction"}  # titles of schemas


def task(settings: Any, label: str) -> splits.Task:
  """The server with the address `label`, http:// or https://; `settings`: the section `task`."""
  options = catalog.json_object("task.options", settings.options)
  for name, value in options.items():
    if not isinstance(value, _OPTIONS.get(name, ())):
      kinds = ", ".join(f"{name} ({kind.__name__})" for name, kind in _OPTIONS.items())
      raise TaskError(f"task.options: got {name!r:.60}: {value!r:.60}, expected {kinds}")
  if not label.startswith(("http://", "https://")):
    raise TaskError(f"task.name: got {settings.name!r:.100}, expected openenv:http://HOST:PORT")
  world = {"url": label.rstrip("/"), **options}
  check = functools.partial(sources.check_package, "websockets", "websockets", extra="openenv")
  return adapted.of_seeds(settings, f"{__name__}:Session", _openings, world, check)


def _openings(world: dict[str, Any], size: int) -> list[str]:
  session = Session()
  try:
    with contextlib.closing(session):
      return [session.open(world, seed) for seed in range(size)]
  except Exception as error:  # of the network, the server or its answers
    why = f"{type(error).__name__}: {error!s:.300}"
    raise TaskError(f"task.name: openenv:{world['url']}: {why}") from None


@environment.environment
class Session:
  """One episode of a server.

  An action is the text of the only field that the server requires, or a JSON object of all fields.
  """

  _socket: Any = None

  def reset(self, problem: str, _seed: int) -> Turn:
    """Begins the episode; says what the server says if that isn't what the prompt said."""
    given = json.loads(problem)
    opening = self.open(given["world"], given["seed"])
    return Turn("" if splits.digest(opening).hex() == given["opening"] else opening)

  def open(self, world: dict[str, Any], seed: int) -> str:
    """Begins an episode and returns the first observation.

    Raises:
      OSError, RuntimeError, ValueError: the server can't be reached, refuses or answers nonsense.
    """
    if self._socket is None:
      self._world = world
      self._required = _required(world["url"], self._seconds())
      client: Any = importlib.import_module("websockets.sync.client")  # an extra
      self._closed = importlib.import_module("websockets.exceptions").ConnectionClosed
      self._socket = client.connect(
        "ws" + world["url"].removeprefix("http") + "/ws",
        open_timeout=self._seconds(),
        close_timeout=1.0,
        max_size=_MOST_BYTES,
        proxy=None,
      )
    return self._turn(self._ask("reset", world.get("reset", {}) | {"seed": seed})).text

  def step(self, action: str) -> Turn:
    """Answers an action; what is no action of the server's is said to the policy."""
    fields = self._fields(action)
    if fields is None:
      return Turn(f"error: expected a JSON object with {', '.join(self._required) or 'any fields'}")
    answer = self._ask("step", fields)
    if answer["type"] == "error":
      return Turn(f"error: {_wrong(answer['data'])}")
    return self._turn(answer)

  def close(self) -> None:
    """Ends the session."""
    if self._socket is not None:
      self._socket.close()

  def _seconds(self) -> float:
    return self._world.get("seconds", _SECONDS)

  def _fields(self, action: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
      given = json.loads(action)
      if isinstance(given, dict):
        return given
    return {self._required[0]: action} if len(self._required) == 1 else None

  def _ask(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """The server's answer: an observation, or an error that a wrong action has caused."""
    with contextlib.suppress(self._closed):  # it may have said why before
      self._socket.send(json.dumps({"type": kind, "data": data}))
    answer = json.loads(self._socket.recv(timeout=self._seconds()))
    problem = answer["data"] if answer["type"] == "error" else {}
    if problem and not (kind == "step" and problem.get("code") == "VALIDATION_ERROR"):
      raise RuntimeError(f"the server says: {problem.get('code')}: {problem.get('message')!s:.200}")
    return answer

  def _turn(self, answer: dict[str, Any]) -> Turn:
    data = answer["data"]
    seen = {name: x for name, x in data["observation"].items() if name != "metadata"}
    field = self._world.get("text")
    if field and field not in seen:
      raise ValueError(f"task.options: text: got {field!r}, expected one of {', '.join(seen)}")
    text = seen[field] if field else json.dumps(seen, ensure_ascii=False)
    return Turn(str(text), float(data["reward"] or 0.0), bool(data["done"]))


def _wrong(data: dict[str, Any]) -> str:
  """The fields of an action that are wrong, and why."""
  errors: list[dict[str, Any]] = data.get("errors") or [{"msg": data.get("message")}]
  lines = (f"{'.'.join(map(str, e.get('loc', ['action'])))}: {e.get('msg')}" for e in errors)
  return f"{'; '.join(lines):.500}"


def _required(url: str, seconds: float) -> list[str]:
  """The fields that an action needs, from the server's own schema."""
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  with opener.open(f"{url}/schema", timeout=seconds) as answer:
    schema = json.loads(answer.read(_MOST_BYTES))["action"]
  if schema.get("title") in _OF_TOOLS:
    raise ValueError("its actions are calls of tools over MCP, which can't be played here")
  return schema.get("required", [])
