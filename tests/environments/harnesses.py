"""Agents for tests, which speak HTTP without a client's package."""

import http.client
import json
import random
import time
from urllib.parse import urlsplit

from offpolicy_rl.environments import agents, tools


class Refused(RuntimeError):
  """The answer was an error."""


def ask(base_url: str, messages: list, **fields) -> dict:
  """The message that answers a chat."""
  return choice(base_url, messages, **fields)["message"]


def choice(base_url: str, messages: list, **fields) -> dict:
  """The only choice of an answer."""
  return answer(base_url, messages, **fields)["choices"][0]


def answer(base_url: str, messages: list, **fields) -> dict:
  parts = urlsplit(base_url)
  connection = http.client.HTTPConnection(parts.netloc)
  body = json.dumps({"model": "policy", "messages": messages} | fields)
  path = f"{parts.path}/chat/completions"
  connection.request("POST", path, body, {"Content-Type": "application/json"})
  found = json.loads(connection.getresponse().read())
  connection.close()
  if "error" in found:
    raise Refused(found["error"]["message"])
  return found


@agents.agent
def adds(base_url: str, problem: agents.Problem, seed: int) -> float:
  """games.Adds as a loop of its own; 0.5 per turn, as there."""
  total, turns, messages = seed, 0, list(problem.messages)
  while total != problem.answer:
    said = ask(base_url, messages)
    total, turns = total + int(said["content"]), turns + 1
    messages += [said, {"role": "user", "content": f"{total}"}]
  return 0.5 * turns


@agents.agent
async def waits(_base_url: str, _problem: agents.Problem, _seed: int) -> float:
  """A coroutine that never asks."""
  return 1.0


def add(a: int, b: int) -> int:
  """Adds two numbers."""
  return a + b


@agents.agent(offers=(add,))
def calls(base_url: str, problem: agents.Problem, _seed: int) -> float:
  """Calls tools until there is an answer."""
  messages = list(problem.messages)
  while True:
    said = ask(base_url, messages, tools=[tools.describe(add)])
    messages.append(said)
    if "tool_calls" not in said:
      return float(said["content"] == problem.answer)
    for call in said["tool_calls"]:
      result = add(**json.loads(call["function"]["arguments"]))
      messages.append({"role": "tool", "tool_call_id": call["id"], "content": str(result)})


@agents.agent
def obeys(base_url: str, problem: agents.Problem, _seed: int) -> float:
  """Asks for what the policy says, in JSON: fields and messages of the next request."""
  messages = list(problem.messages)
  while True:
    said = ask(base_url, messages)
    order = json.loads(said["content"])
    if order == "hang":
      time.sleep(60)
    if order == "reward":
      return 1.0
    if order == "nothing":
      return None
    before = order.pop("before", messages)
    messages = [*before, said, *order.pop("messages", [])]
    ask(base_url, messages, **order)


@agents.agent
def rewrites(base_url: str, problem: agents.Problem, _seed: int) -> float:
  """Asks with the messages behind the prompt that the policy says; a number is an answer of its."""
  answers, behind = [], []
  while True:
    answers.append(ask(base_url, [*problem.messages, *behind]))
    order = json.loads(answers[-1]["content"])
    behind = [answers[m] if isinstance(m, int) else m for m in order]


@agents.agent
def recalls(base_url: str, problem: agents.Problem, _seed: int) -> float:
  """Tells a call of a tool that there never was, then the policy's."""
  messages, offered = list(problem.messages), [tools.describe(add)]
  said = ask(base_url, messages, tools=offered)
  function = {"name": "add", "arguments": json.dumps({"a": 1})}
  other = {"id": "0", "type": "function", "function": function}
  messages += [{"role": "assistant", "content": None, "tool_calls": [other]}]
  messages += [{"role": "tool", "tool_call_id": "0", "content": "5"}, said]
  messages += [{"role": "tool", "tool_call_id": "1", "content": "7"}]
  ask(base_url, [*messages, {"role": "user", "content": "x"}], tools=offered)
  return 1.0


def forgets(ask_for, problem: agents.Problem, seed: int) -> float:
  """The game of environments/guess.py, whose loop tells in short what it said, or asks again.

  ask_for: messages -> the text of the answer.
  """
  number, behind = random.Random(seed).randint(*problem.answer), []
  for turn in range(1, 9):
    guess = ask_for([*problem.messages, *behind]).strip()
    if guess == str(number):
      return 1.0
    is_digit = len(guess) == 1 and guess.isdecimal()
    reply = {
      "role": "user",
      "content": "?" if not is_digit else "<" if number < int(guess) else ">",
    }
    behind += [{"role": "assistant", "content": guess}, reply]
    if turn % 4 == 2:  # what it said before
      behind = [{"role": "assistant", "content": f"{turn} guesses"}, reply]
    elif turn % 4 == 3:  # a second conversation
      behind = [{"role": "user", "content": "Again."}]
    elif turn % 4 == 0:  # the first request
      behind = []
  return 0.0


@agents.agent
def compacts(base_url: str, problem: agents.Problem, seed: int) -> float:
  return forgets(lambda messages: ask(base_url, messages)["content"], problem, seed)


@agents.agent
def surprised(base_url: str, problem: agents.Problem, _seed: int) -> float:
  """The reward is how unlikely the turn was, in nats."""
  told = choice(base_url, list(problem.messages), logprobs=True)["logprobs"]["content"]
  return -sum(token["logprob"] for token in told if token["token"] != "<eos>")


@agents.agent
def counts(base_url: str, problem: agents.Problem, _seed: int) -> float:
  """The reward is all that was told of the turn, in digits."""
  told = answer(base_url, list(problem.messages))
  cut = told["choices"][0]["finish_reason"] == "length"
  return 1000 * cut + 10 * told["usage"]["prompt_tokens"] + told["usage"]["completion_tokens"]


@agents.agent
def other_prompt(base_url: str, problem: agents.Problem, _seed: int) -> float:
  """Begins otherwise than the prompt."""
  ask(base_url, [{"role": "user", "content": problem.messages[0]["content"] + " please"}])
  return 1.0


@agents.agent
def guesses(base_url: str, problem: agents.Problem, seed: int) -> float:
  """The game of environments/guess.py as a loop of its own."""
  number, messages = random.Random(seed).randint(*problem.answer), list(problem.messages)
  while True:
    said = ask(base_url, messages)
    guess = said["content"]
    if guess == str(number):
      return 1.0
    is_digit = len(guess) == 1 and guess.isdecimal()
    reply = "?" if not is_digit else "<" if number < int(guess) else ">"
    messages += [said, {"role": "user", "content": reply}]
