"""Serves a trained policy to chat clients on this machine."""

import pathlib
import threading

import numpy as np
from ml_collections import ConfigDict

from offpolicy_rl.chat_api import requests, server
from offpolicy_rl.environments import calls, tools
from offpolicy_rl.model import lora, sharding
from offpolicy_rl.roles import build, trained
from offpolicy_rl.sampler import chat, engine, sizing, stopping, streams
from offpolicy_rl.system import output
from offpolicy_rl.tasks import chat as templates

_CONTEXT = 2048  # tokens, where training had less


def run(
  config: ConfigDict,
  *,
  run_dir: pathlib.Path | None,
  listen: str,
  name: str,
  slots: int,
  context: int | None,
  key: str,
  stop: threading.Event,
) -> None:
  """Serves until `stop`.

  Args:
    config: checked; its model.checkpoint has the weights if `run_dir` is None.
    listen: HOST:PORT.
    name: of the model, for clients.
    slots: answers sampled at the same time.
    context: tokens of prompt and answer together; None = those of the configuration or more.
    key: that clients have to send; "" = none.

  Raises:
    RuntimeError, ValueError, OSError: weights, tokenizer or address can't be used.
  """
  console = output.console()
  files = trained.model_files(config, run_dir)
  template = None if files is None else templates.source(files, tools=True)
  config.task.chat = config.task.chat and template is not None
  build.fill_in(config, files)
  policy = build.make_policy(config, files)
  lengths = config.task.max_prompt_tokens + config.task.max_completion_tokens
  sizes = _sizes(config, policy, slots, context or max(_CONTEXT, lengths))
  step, params = trained.weights(config, policy, run_dir)
  streamed = streams.Streams(sizes.steps)
  settings = chat.Settings(
    name=name,
    context=sizes.max_prompt_tokens + sizes.max_tokens,
    longest_prompt=sizes.max_prompt_tokens,
    slots=slots,
    temperature=config.sampler.temperature,
    truncation=build.truncation(config),
    form=tools.FORMATS.get(calls.format_of(template.text) if template else ""),
  )
  made = _engine(config, policy, sizes, streamed)
  console.print("compiling ...")
  streamed.warm_up(made, params, np.array(policy.tokenizer.encode("1"), np.int32))
  host, _, port = listen.rpartition(":")
  backend = chat.Chat(streamed, policy.tokenizer, settings)
  with server.serving(backend, host=host, port=int(port), key=key) as url:
    for line in _about(config, settings, step, bool(key)):
      console.print(line, markup=False)
    console.print(f"serving {name} at {url}{chat.BASE}, Ctrl-C ends it", markup=False)
    streamed.run(made, params, stop)


def _sizes(config: ConfigDict, policy: build.Policy, slots: int, context: int) -> sizing.Sizes:
  """Sizes for answers of any length up to `context`, sampled in pieces."""
  sampler, steps = config.sampler, config.sampler.decode_steps
  if context < 2 * steps:
    raise ValueError(f"--context: got {context}, expected at least {2 * steps}")
  rows = -(-context // sampler.page_tokens)
  return sizing.Sizes(
    slots=slots,
    group_size=1,
    max_prompt_tokens=context - steps,
    max_tokens=steps,
    page_tokens=sampler.page_tokens,
    cache_tokens=(slots + 2) * rows * sampler.page_tokens,  # two more: prompts to come
    prefill_tokens=sampler.prefill_tokens,
    steps=steps,
    candidates=min(requests.MAX_TOP_LOGPROBS, policy.model.vocab_size),
    episodes=slots,
  )


def _engine(
  config: ConfigDict, policy: build.Policy, sizes: sizing.Sizes, streamed: streams.Streams
) -> engine.Engine:
  return engine.Engine(
    lora.base_config(policy.model),
    sizes,
    seed=config.seed,
    stops=stopping.Stops(policy.tokenizer.ends),  # texts are looked for in whole answers
    truncation=build.truncation(config),
    mesh=sharding.make_mesh(),
    episodes=streamed,
  )


def _about(config: ConfigDict, settings: chat.Settings, step: int | None, key: bool) -> list[str]:
  """Lines for people."""
  lines = [] if step is None else [f"weights of step {step}"]
  lines += [f"prompt and answer: {settings.context} tokens; {settings.slots} answers at a time"]
  if not config.task.chat:
    lines.append("no chat template: the texts of the messages are the prompt, as they are")
  elif settings.form is None:
    lines.append("no tools: the chat template asks for calls in no format that is known here")
  if key:
    lines.append("clients need the key of --token_file")
  return lines
