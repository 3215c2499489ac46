"""Python as a tool: the policy may run programs before it says its answer."""

from offpolicy_rl.environments import environment, tools
from offpolicy_rl.sandbox import programs
from offpolicy_rl.tasks import code, named, verifiers

MOST_CHARACTERS = 2000  # of a program's output; it counts in the tokens of the episode
_WHY = {
  "seconds": "stopped: it took too long",
  "cpu": "stopped: it took too long",
  "threads": "stopped: it started too many threads",
  "output": "it printed too much",
}


def python(program: str) -> str:
  """Runs a Python program, which has the standard library, no network and no files, and returns
  what it prints; every program begins anew.

  Args:
    program: the text of the program; only what it prints is seen.
  """
  ran = programs.run(program, limits=code.limits())
  parts = [_shortened(ran.stdout), _shortened(ran.stderr)]
  if ran.ended != "exit":
    parts.append(_WHY[ran.ended])
  elif ran.status and not ran.stderr.strip():
    parts.append(f"exit status {ran.status}")
  return "\n".join(part for part in parts if part) or "(no output)"


def _shortened(text: str) -> str:
  """The text, without its middle if it is long."""
  text, half = text.strip(), MOST_CHARACTERS // 2
  if len(text) <= MOST_CHARACTERS:
    return text
  return f"{text[:half]}\n... {len(text) - 2 * half:,} characters ...\n{text[-half:]}"


@environment.environment
@named.needs(programs.check)
class Python(tools.ToolEnvironment):
  """For problems with one number as their answer, e.g. task.name=gsm8k."""

  tools = (python,)

  def judge(self, answer: str) -> float:
    """The verdict of the verifier `numeric`."""
    return verifiers.numeric(answer, self.problem)
