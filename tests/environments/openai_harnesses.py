"""Agents with the packages of OpenAI: its client in a loop of our own, and its agents' SDK."""

import json
import random

import agents as sdk
import openai

from offpolicy_rl.environments import agents, tools
from tests.environments.harnesses import add


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
