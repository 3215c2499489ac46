"""Agents with the packages of OpenAI: its client in a loop of our own, and its agents' SDK."""

import functools
import json
import random

import agents as sdk
import openai

from offpolicy_rl.environments import agents, tools
from tests.environments.harnesses import add, forgets


def client_of(base_url: str, kind=openai.OpenAI):
  return kind(base_url=base_url, api_key="none", max_retries=0, timeout=None)


@agents.agent
def guesses(base_url: str, problem: agents.Problem, seed: int) -> float:
  """The game of environments/guess.py, streamed."""
  client, messages = client_of(base_url), list(problem.messages)
  number = random.Random(seed).randint(*problem.answer)
  while True:
    chunks = client.chat.completions.create(model="policy", messages=messages, stream=True)
    guess = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    if guess == str(number):
      return 1.0
    is_digit = len(guess) == 1 and guess.isdecimal()
    reply = "?" if not is_digit else "<" if number < int(guess) else ">"
    messages += [{"role": "assistant", "content": guess}, {"role": "user", "content": reply}]


@agents.agent
def compacts(base_url: str, problem: agents.Problem, seed: int) -> float:
  """harnesses.compacts with the client."""
  create = client_of(base_url).chat.completions.create
  ask_for = lambda messages: create(model="policy", messages=messages).choices[0].message.content
  return forgets(ask_for, problem, seed)


@agents.agent(offers=(add,))
def checks(base_url: str, problem: agents.Problem, _seed: int) -> float:
  """Has its answer checked in a second conversation, with a tool, and goes on with the first."""
  create = client_of(base_url).chat.completions.create
  create = functools.partial(create, model="policy", tools=[tools.describe(add)])
  ask = lambda *behind: create(messages=[*problem.messages, *behind]).choices[0].message
  answer, question = ask(), {"role": "user", "content": "Check it."}
  check = ask(question)
  [call] = check.tool_calls
  result = str(add(**json.loads(call.function.arguments)))
  told = {"role": "tool", "tool_call_id": call.id, "content": result}
  found = ask(question, check, told, {"role": "user", "content": "So?"}).content
  try:
    create(messages=[{"role": "system", "content": "Be brief."}, *problem.messages])
  except openai.BadRequestError as error:
    found += f": {error.param} {'begins with the prompt' in error.message}"
  return float(ask(answer, {"role": "user", "content": found}).content == problem.answer)


@agents.agent(offers=(add,))
def sums(base_url: str, problem: agents.Problem, _seed: int) -> float:
  """Calls a tool until there is an answer."""
  client, messages = client_of(base_url), list(problem.messages)
  while True:
    offered = [tools.describe(add)]
    answer = client.chat.completions.create(model="policy", messages=messages, tools=offered)
    message = answer.choices[0].message
    messages.append(message)
    if not message.tool_calls:
      return float(message.content == problem.answer)
    for call in message.tool_calls:
      result = str(add(**json.loads(call.function.arguments)))
      messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


@agents.agent
async def with_sdk(base_url: str, problem: agents.Problem, _seed: int) -> float:
  """The same, where the loop is that of OpenAI's agents' SDK."""
  sdk.set_tracing_disabled(True)
  client = client_of(base_url, openai.AsyncOpenAI)
  model = sdk.OpenAIChatCompletionsModel(model="policy", openai_client=client)
  calculator = sdk.Agent(name="calculator", model=model, tools=[sdk.function_tool(add)])
  result = await sdk.Runner.run(calculator, problem.messages[-1]["content"])
  return float(result.final_output == problem.answer)
