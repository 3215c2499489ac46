"""Tasksets of verifiers 0.4, https://github.com/PrimeIntellect-ai/verifiers, as episodes.

An Env of that package talks to an agent, turn by turn or once. Here the policy is that agent, and
no harness, model endpoint or runtime is started.
"""

import asyncio
import contextlib
import functools
import importlib
import inspect
import itertools
import json
import types
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from offpolicy_rl.environments import adapted, environment
from offpolicy_rl.environments.environment import Turn
from offpolicy_rl.tasks import catalog, sources, splits
from offpolicy_rl.tasks.rows import TaskError


def task(settings: Any, label: str) -> splits.Task:
  """The installed taskset `label`; `settings`: the section `task`, `size` limits its tasks."""
  options = catalog.json_object("task.options", settings.options)

  def problems(rows: Sequence[tuple[list[dict], dict]]) -> list[sources.Problem]:
    return [
      sources.Problem(
        messages[-1]["content"],
        json.dumps({"taskset": label, "options": options, "data": data}),
        messages=tuple(messages) if len(messages) > 1 else (),
      )
      for messages, data in rows
    ]

  read = functools.partial(_read, label, options)
  check = functools.partial(sources.check_package, "verifiers", "verifiers", extra="verifiers")
  return adapted.task(settings, f"{__name__}:Rollout", read, problems, check)


def _read(label: str, options: dict[str, Any], size: int) -> list[tuple[list[dict], dict]]:
  """(messages of the prompt, data) of the first tasks.

  Raises:
    TaskError: the taskset can't be loaded, or can't be played here.
  """
  try:
    world = _World(label, options)
    found = list(itertools.islice(world.taskset, size))
    why = next(filter(None, map(world.why_not, found)), "")
  except Exception as error:  # of the taskset
    why = " ".join(f"{type(error).__name__}: {error}".split())
  if why:
    raise TaskError(f"task.name: verifiers:{label}: {why:.300}")
  return [(_messages(t.data), t.data.model_dump(mode="json")) for t in found]


def _messages(data: Any) -> list[dict[str, str]]:
  """The prompt of a task as a chat; its name if the taskset's Env says something first."""
  prompt = data.prompt or data.name or f"Task {data.idx}"
  system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
  if isinstance(prompt, str):
    return [*system, {"role": "user", "content": prompt}]
  return [*system, *({"role": m.role, "content": m.content} for m in prompt)]


class _World:
  """A taskset, and the Env that plays it."""

  def __init__(self, label: str, options: dict[str, Any]):
    loaders: Any = importlib.import_module("verifiers.v1.utils.loaders")  # of an extra
    agents: Any = importlib.import_module("verifiers.v1.configs.agent")
    settings = loaders.resolve_env_config({"taskset": {"id": label, **options}})
    self.env = loaders.load_environment(settings)
    self.taskset = self.env.taskset
    self.seats = list(agents.agent_config_fields(settings))

  def task(self, data: dict[str, Any]) -> Any:
    """The task with this data, made as the package's own server makes it."""
    kind = self.taskset.task_type()
    return kind(kind.data_type().model_validate(data), self.taskset.config.task)

  def why_not(self, task: Any) -> str:
    """Says what a task needs that can't be had here; "" = it can be played."""
    vf: Any = importlib.import_module("verifiers.v1")
    kind, world = type(task), type(self.taskset)
    contents = [message["content"] for message in _messages(task.data)]
    needs = {
      "a container": kind.NEEDS_CONTAINER or task.data.image,
      "tool servers": kind.toolsets(task.config) or world.toolsets(self.taskset.config),
      "a runtime": _differs(kind, vf.Task, "setup", "finalize")
      or any(map(_takes_runtime, (*task.hooks("reward"), *task.hooks("metric")))),
      "stops or interceptors": task.hooks("stop") or _marked(kind, "intercept"),
      "several agents": len(self.seats) != 1,
      "an Env that prepares or judges": _differs(
        type(self.env), vf.Env, "setup", "finalize", "start"
      ),
      "more than text": not all(isinstance(content, str) for content in contents),
    }
    found = [need for need, value in needs.items() if value]
    return f"it needs {', '.join(found)}, which a policy without a harness hasn't" if found else ""


def _differs(kind: type, base: type, *names: str) -> bool:
  return any(getattr(kind, name) is not getattr(base, name) for name in names)


def _marked(kind: type, mark: str) -> bool:
  return any(hasattr(getattr(kind, name, None), mark) for name in dir(kind))


def _takes_runtime(function: Any) -> bool:
  parameter = inspect.signature(function).parameters.get("runtime")
  return parameter is not None and parameter.default is inspect.Parameter.empty


@functools.cache
def _world(label: str, options: str) -> _World:
  return _World(label, json.loads(options))


@environment.environment
class Rollout:
  """One task; its reward is the weighted sum of the taskset's, which comes at the end."""

  def reset(self, problem: str, _seed: int) -> Turn:
    """Begins the task of the problem; says what the taskset's Env says first, if it does."""
    given = json.loads(problem)
    world = _world(given["taskset"], json.dumps(given["options"]))
    task = world.task(given["data"])
    self._loop = asyncio.new_event_loop()
    self._agent = _Agent()
    agents = types.SimpleNamespace(**{world.seats[0]: self._agent})
    self._run = self._loop.create_task(world.env.run(task, agents))
    return self._until_asked()

  def step(self, action: str) -> Turn:
    """Gives the policy's turn to whoever waits for it."""
    self._agent.heard.put_nowait(action)
    return self._until_asked()

  def close(self) -> None:
    """Ends what still runs."""
    self._run.cancel()
    self._loop.run_until_complete(asyncio.wait({self._run}))
    self._loop.close()

  def _until_asked(self) -> Turn:
    """Lets the Env go on until it asks the policy, or ends."""
    asked = self._loop.create_task(self._agent.said.get())
    both = asyncio.wait({self._run, asked}, return_when=asyncio.FIRST_COMPLETED)
    self._loop.run_until_complete(both)
    if asked.done():
      return Turn(asked.result())
    asked.cancel()
    self._loop.run_until_complete(asyncio.wait({asked}))
    self._run.result()  # raises what it has raised
    return Turn(reward=self._agent.trace.reward, done=True)


class _Agent:
  """An agent of the package, as far as its Envs use one: the policy has one conversation."""

  def __init__(self):
    self.said, self.heard = asyncio.Queue(), asyncio.Queue()
    self.trace: Any = None

  async def run(self, task: Any) -> Any:
    """Asks once; returns the scored trace."""
    async with self.interaction(task) as interaction:
      await interaction.turn()
    return self.trace

  @contextlib.asynccontextmanager
  async def interaction(self, task: Any) -> AsyncGenerator["_Agent"]:
    """A conversation, scored by the task at its end.

    Raises:
      RuntimeError: there was one before.
    """
    if self.trace is not None:
      raise RuntimeError("the taskset's Env begins a second conversation")
    self.trace = _trace(task)
    for message in _messages(task.data) if task.data.prompt else ():
      self._add(message["role"], message["content"])
    yield self
    self.trace.stop("user_closed")
    self.trace.ok = self.trace.is_completed = True
    await task.score(self.trace)

  async def turn(self, message: Any = None) -> Any:
    """Says something to the policy, and returns its answer as a Segment."""
    said = message or ""
    if not isinstance(said, str):
      said = "\n".join(m["content"] if isinstance(m, dict) else m.content for m in said)
    if said:
      self._add("user", said)
    self.said.put_nowait(said)
    answer = self._add("assistant", await self.heard.get())
    agent: Any = importlib.import_module("verifiers.v1.agent")
    return agent.Segment(messages=[answer])

  def _add(self, role: str, content: str) -> Any:
    """Puts a message at the end of the trace, and returns it."""
    graph: Any = importlib.import_module("verifiers.v1.graph")
    nodes, parts = self.trace.nodes, {"role": role, "content": content}
    parent = len(nodes) - 1 if nodes else None
    nodes.append(graph.MessageNode(parent=parent, message=parts, sampled=role == "assistant"))
    return nodes[-1].message


def _trace(task: Any) -> Any:
  """An empty trace, as the package's rollouts begin with."""
  vf, traces, states = (
    importlib.import_module(f"verifiers.v1{name}") for name in ("", ".trace", ".state")
  )
  kind = type(task)
  about = traces.TraceTask(type=kind.__name__, data=task.data, key=task.key, hash=task.hash)
  agent = traces.AgentInfo(config=vf.AgentConfig())
  return vf.Trace(task=about, state=states.state_cls(kind)(), agent=agent)
