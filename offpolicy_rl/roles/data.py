"""The prompts of a run, and checks of them before it starts."""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.environments import agents, environment, tools
from offpolicy_rl.replay import lag
from offpolicy_rl.roles import build, teacher
from offpolicy_rl.tasks import (
  catalog,
  pool,
  prompts,
  scoring,
  sources,
  splits,
  thoughts,
  tokenizer,
  turns,
  verifiers,
)
from offpolicy_rl.tasks.rows import LeftOut, TaskError
from offpolicy_rl.transport import bounds, codec

_LOG = logging.getLogger(__name__)
SPLITS = (catalog.TRAIN_SPLIT, catalog.HELDOUT_SPLIT)
_SAMPLE = 64  # problems of a split that are inspected before a run
_CHUNK = 250  # right answers that a worker gets at a time
_MAX_WORKERS = 8
_STRICTEST_FIRST = ("numeric", "math_verify", "exact")  # verifiers to recommend

Members = list[tuple[float, prompts.Tokenized]]  # (rate, prompts) of each task


def examples(
  config: ConfigDict, selection: catalog.Selection, policy: build.Policy, split: str
) -> Members:
  """Reads (rate, prompts) of each task of an expanded selection.

  Raises:
    TaskError: problems can't be read, or too many are unusable.
  """
  return prompts.tokenize_split(selection, split, functools.partial(rendering, config, policy))


def rendering(config: ConfigDict, policy: build.Policy, task: catalog.Task) -> prompts.Rendering:
  """The way in which a task's problems become prompts, with the tools of its environment.

  Raises:
    ConfigError: the environment can't be found.
    TokenizerError: the chat template can't be used for environment.history.
  """
  made = prompts.Rendering(
    policy.words(task.environment),
    config.task.max_prompt_tokens,
    ticket_fault(config, policy.model.vocab_size),
    task=task.name,
    environment=task.environment,
  )
  if not task.environment:
    return made
  if history := build.chat_history(config, made.tokenizer):
    made = dataclasses.replace(made, trim=history.without_tail)
  try:
    key = config_lib.environments(config)[task.environment]
    played = environment.resolve(task.environment, key)
  except ValueError as error:
    if config.lag.mode != lag.REPLAY:  # else nobody may have to play
      raise config_lib.ConfigError(str(error)) from None
    return made
  if not agents.is_agent(played):
    return made
  rewrites = config.environment.history == thoughts.REWRITE
  answer = functools.partial(agents.answer_data, made.tokenizer, rewrites=rewrites)
  return dataclasses.replace(made, answer=answer)


def ticket_fault(config: ConfigDict, vocab_size: int) -> Callable[[prompts.Example], str | None]:
  """Makes a function that says why no sampler could answer a prompt, or None."""
  return functools.partial(_ticket_fault, config, vocab_size)


def _ticket_fault(config, vocab_size: int, example: prompts.Example) -> str | None:
  completions = max(config.learner.group_size, config.evaluation.samples)
  prompt, answer = example.prompt_tokens, example.answer
  ticket = types.Ticket(
    "train/0/0", types.TRAIN, 0, 0, prompt, answer, 0, 0, completions, config.sampler.temperature
  )
  try:
    codec.check_ticket(
      codec.decode_ticket(codec.encode_ticket(ticket)),
      vocab_size=vocab_size,
      max_completions=completions,
      max_prompt_tokens=config.task.max_prompt_tokens,
    )
    bounds.check_prompt(prompt.size, answer, config.transport.max_message_mb, "ticket")
  except codec.WireError as error:
    return str(error)
  return None


def summary(name: str, train: Members, held: Members) -> str:
  """Describes the prompts of a task in a line."""
  count = lambda members, field: sum(len(getattr(made, field)) for _, made in members)
  streamed = sum(made.streamed is not None for _, made in train)
  line = f"task {name}: {count(train, 'examples')} prompts"
  if streamed:
    line += f" (only the first of {streamed} streamed task{'s' if streamed > 1 else ''})"
  line += f", {count(held, 'examples')} held out"
  too_long = [(count(train, "too_long"), "for training"), (count(held, "too_long"), "held out")]
  if any(number for number, _ in too_long):
    line += "; too long: " + ", ".join(f"{number} {kind}" for number, kind in too_long if number)
  left_out = [row for _, made in (*train, *held) for row in made.left_out]
  if not left_out:
    return line
  return f"{line}; {len(left_out)} can't be used: {left_out[0].where}: {left_out[0].why}"


def check_start(config: ConfigDict) -> None:
  """Checks what a run needs before its directory is made; see `check_problems`.

  Raises:
    ConfigError, tokenizer.TokenizerError, families.UnsupportedModel: a run could not start.
  """
  selection, policy = config_lib.check_data(config), initial_policy(config)
  check_turns(config, policy)
  teacher.find(config, policy)
  check_messages(config, policy)
  check_problems(config, selection, policy)


def check_turns(config: ConfigDict, policy: build.Policy) -> None:
  """Raises TokenizerError if the chat template can't go on as the run's environments do."""
  for name, key in config_lib.environments(config).items():
    words, played = policy.words(name), None
    if not isinstance(words, tokenizer.Tokenizer):
      continue
    with contextlib.suppress(ValueError):  # named later, unless nobody has to play
      played = environment.resolve(name, key)
    try:
      turns.check(words, config.environment.history, tools.roles(played, shown=words.shows_tools))
    except tokenizer.TokenizerError as error:
      raise tokenizer.TokenizerError(f"{key}: {name}: {error}") from None


def initial_policy(config: ConfigDict) -> build.Policy:
  """Makes the policy that a run begins with; the configuration is not changed."""
  config = config_lib.from_json(config_lib.to_json(config))
  folder = config.model.checkpoint
  files = tokenizer.read_files(pathlib.Path(folder)) if folder else None
  build.fill_in(config, files)
  return build.make_policy(config, files)


def check_messages(config: ConfigDict, policy: build.Policy) -> None:
  """Raises ConfigError if what a joining sampler receives does not fit into a message.

  `config.validate` and `ticket_fault` check groups and prompts; weights are sent in pieces.
  """
  limit, size = config.transport.max_message_mb, _hello_bytes(config, policy)
  if size > limit << 20:
    raise config_lib.ConfigError(
      f"transport.max_message_mb: got {limit}, expected at least {(size >> 20) + 1}: the model's "
      "tokenizer and the configuration must fit"
    )


def _hello_bytes(config, policy: build.Policy) -> int:
  files = (text for text in policy.files or () if isinstance(text, str))
  return sum(len(text.encode()) for text in files) + len(config_lib.to_json(config)) + 4096


def largest_message(config: ConfigDict, policy: build.Policy) -> tuple[str, int]:
  """(description, maximal size in bytes) of a run's largest message, weights excepted."""
  completions = max(config.learner.group_size, config.evaluation.samples)
  tokens = config.task.max_completion_tokens
  group = f"a group of {completions} completions with {tokens} tokens each"
  sizes = {
    group: bounds.max_group_bytes(completions, tokens, config.sampler.top_logprobs),
    "the model's tokenizer and the configuration": _hello_bytes(config, policy),
  }
  return max(sizes.items(), key=lambda item: item[1])


def check_problems(config: ConfigDict, selection: catalog.Selection, policy: build.Policy) -> None:
  """Inspects a sample of each task, and all problems if something is wrong.

  Of tasks that are slow to list only names and vocabularies are checked, as the run reads all their
  prompts later anyway.

  Raises:
    ConfigError: a run could not start.
  """
  try:
    selection = selection.expanded()
    for task in selection.tasks:
      prompts.require_same_ids(task, policy.tokenizer)
  except TaskError as error:
    raise config_lib.ConfigError(str(error)) from None
  if all(task.slow for task in selection.tasks):
    return
  quick = [i for i, task in enumerate(selection.tasks) if not task.slow]
  look = functools.partial(inspect, config, selection, policy, only=quick)
  try:
    inspected = look(sample=_SAMPLE)
  except pool.PoolError as error:  # only samplers need the verifier
    _LOG.warning("not checked whether right answers can be judged: %s", error)
    look = functools.partial(look, judge=False)
    inspected = look(sample=_SAMPLE)
  if any(one.made.left_out or one.unreadable or not one.made.examples for one in inspected):
    if any(len(one.reading.problems) > _SAMPLE for one in inspected):
      inspected = look()
    require(config, inspected)
  for one in inspected:
    if one.unreadable:
      where, why = one.unreadable[0]
      _LOG.warning(
        "task %s, %s: answers to %d problems can't be judged and earn nothing; the first: %s: %s",
        one.task.name,
        one.split,
        len(one.unreadable),
        where,
        why,
      )


class Inspected(NamedTuple):
  """The problems of a split of a task, and what is wrong with them."""

  task: catalog.Task
  split: str
  reading: splits.Reading
  made: prompts.Tokenized
  unreadable: list[LeftOut]  # problems whose right answer the task's verifier can't read


def inspect(
  config: ConfigDict,
  selection: catalog.Selection,
  policy: build.Policy,
  *,
  only: Collection[int] | None = None,
  sample: int | None = None,
  judge: bool = True,
) -> list[Inspected]:
  """Renders problems, and checks that verifiers can read their right answers.

  Args:
    only: indices of tasks; None = all.
    sample: problems per task and split, evenly spaced; None = all.
    judge: whether verifiers read the answers.

  Raises:
    TaskError: problems can't be read.
    pool.PoolError: a verifier can't be used.
  """
  inspected, judged = [], []
  for split in SPLITS:
    for i, (task, reading) in enumerate(zip(selection.tasks, selection.read(split), strict=True)):
      if only is not None and i not in only:
        continue
      step = 1 if sample is None else max(1, -(-len(reading.problems) // sample))
      chosen = reading.problems[::step]
      prompts.require_same_ids(task, policy.tokenizer)
      made = prompts.tokenize(chosen, rendering(config, policy, task))
      inspected.append(Inspected(task, split, reading, made, unreadable=[]))
      judges = [] if task.environment else chosen
      judged.append(list(map(_of_its_task, judges)) if selection.mixed else judges)
  if not judge:
    return inspected
  names = [one.task.verifier for one in inspected]
  unreadable = _unreadable(config.task, names, judged, selection.modules)
  return [one._replace(unreadable=rows) for one, rows in zip(inspected, unreadable, strict=True)]


def _of_its_task(problem: sources.Problem) -> sources.Problem:
  """Unpacks the answer that a mixture has wrapped."""
  return dataclasses.replace(problem, answer=json.loads(problem.answer)["answer"])


def _unreadable(
  task, names: Sequence[str], problems: Sequence[list[sources.Problem]], modules: Sequence[str]
) -> list[list[LeftOut]]:
  """The problems of each list whose answers its verifier can't read, judged in processes."""
  exact = verifiers.NAMED["exact"]  # reads everything
  asked = [name for name, rows in zip(names, problems, strict=True) if rows]
  if set(asked) <= {exact}:
    return [[] for _ in problems]
  workers = pool.WorkerPool(
    min(1 + sum(map(len, problems)) // _CHUNK, _MAX_WORKERS, os.cpu_count() or 1),
    prepare=functools.partial(scoring.allow, tuple(dict.fromkeys(asked)), modules),
    time_limit=task.verifier_seconds,
    memory_mb=task.verifier_memory_mb,
  )
  with contextlib.closing(workers):
    handles = [
      [
        workers.submit(_why_unreadable, [(name, p.answer, p.demonstration) for p in chunk])
        for chunk in (itertools.batched(rows, _CHUNK) if name != exact else ())
      ]
      for name, rows in zip(names, problems, strict=True)
    ]
    reasons = [itertools.chain.from_iterable(h.result() for h in chunks) for chunks in handles]
    return [
      [
        LeftOut(problem.where, why.reason if isinstance(why, pool.Failed) else why)
        for problem, why in zip(rows, whys, strict=False)  # no reasons for exact
        if why
      ]
      for rows, whys in zip(problems, reasons, strict=True)
    ]


def _why_unreadable(name: str, answer: str, demonstration: str) -> str | None:
  """Runs in a worker; recommends another verifier."""
  is_ours = name in verifiers.NAMED.values()
  if not is_ours and not isinstance(json.loads(answer), str):
    return None  # only its own verifier can tell
  why = verifiers.why_unusable(name, answer, demonstration)
  if why is None or name == verifiers.NAMED["code"]:  # no other verifier reads tests
    return why
  others = [short for short in _STRICTEST_FIRST if verifiers.NAMED[short] != name]
  suits = next((short for short in others if _reads(short, answer)), None)
  return why + (f"; task.verifier={suits} can" if suits else "")


def _reads(short: str, answer: str) -> bool:
  try:
    return verifiers.why_unusable(verifiers.NAMED[short], answer) is None
  except Exception:  # a package is missing, or the answer is of another kind
    return False


def require(config: ConfigDict, inspected: Sequence[Inspected]) -> None:
  """Raises ConfigError if a run could not start with these problems."""
  try:
    for one in inspected:
      left_out = [*one.made.left_out, *one.unreadable]
      splits.check_left_out(left_out, len(one.reading.problems), one.task.max_bad_rows)
    for split in SPLITS:
      require_some(config, split, [one.made for one in inspected if one.split == split])
  except TaskError as error:
    raise config_lib.ConfigError(str(error)) from None


def require_some(config: ConfigDict, split: str, made: Sequence[prompts.Tokenized]) -> None:
  """Raises TaskError unless all tasks have training prompts, or one has held-out prompts."""
  counts = [len(one.examples) for one in made]
  if all(counts) if split == catalog.TRAIN_SPLIT else any(counts):
    return
  worst = min(made, key=lambda one: len(one.examples))
  if not worst.too_long:
    raise TaskError(
      f"task.name: got {config.task.name}, which has no problem for the split {split} (and "
      f"{len(worst.left_out)} that can't be used), expected at least one; where a task names no "
      "held-out split, one in eight is held out, by its hash"
    )
  raise TaskError(
    f"task.max_prompt_tokens: got {config.task.max_prompt_tokens}, which leaves no prompt of task "
    f"{config.task.name}, split {split}: {len(worst.too_long)} are too long (the shortest has "
    f"{min(worst.prompt_lengths, default=0)} tokens) and {len(worst.left_out)} can't be used"
  )
