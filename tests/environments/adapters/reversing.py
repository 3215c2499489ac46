"""Tasksets of verifiers: one that asks once, with weighted rewards, and two that need a harness."""

import verifiers.v1 as vf


class Data(vf.TaskData):
  word: str


class ReversingTask(vf.Task[Data]):
  @vf.reward
  async def right(self, trace: vf.Trace) -> float:
    return float(trace.last_reply == self.data.word[::-1])

  @vf.reward(weight=0.5)
  async def as_long(self, task, trace) -> float:
    return float(len(trace.last_reply) == len(task.word))

  @vf.metric
  async def turns(self, trace: vf.Trace) -> float:
    return float(trace.num_turns)


class Config(vf.TasksetConfig):
  words: tuple[str, ...] = ("sun", "moon", "star")


class ReversingTaskset(vf.Taskset[ReversingTask, Config]):
  def load(self):
    return [ReversingTask(Data(prompt=f"Reverse {w}.", word=w)) for w in self.config.words]


class Tools(vf.Toolset):
  @vf.tool
  def shout(self, word: str) -> str:
    """Shouts."""
    return word.upper()


class ToolTask(ReversingTask):
  @classmethod
  def toolsets(cls, config):
    return [Tools(vf.ToolsetConfig())]


class WithTools(vf.Taskset[ToolTask, Config]):
  def load(self):
    return [ToolTask(Data(prompt="Shout.", word="a"))]


class RuntimeTask(ReversingTask):
  @vf.reward
  async def files(self, trace, runtime) -> float:
    return float(bool(await runtime.run(["ls"], {})))


class WithRuntime(vf.Taskset[RuntimeTask, Config]):
  def load(self):
    return [RuntimeTask(Data(prompt="List.", word="a"))]
