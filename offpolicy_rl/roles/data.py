"""The data of a run: prompts, and all that their tickets need checked where they are read."""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from offpolicy_rl import config as config_lib
from offpolicy_rl import types
from offpolicy_rl.roles import build
from offpolicy_rl.tasks import (
  catalog,
  pool,
  prompts,
  scoring,
  sources,
  splits,
  tokenizer,
  verifiers,
)
from offpolicy_rl.tasks.rows import LeftOut, TaskError
from offpolicy_rl.transport import bounds, codec

_LOG = logging.getLogger(__name__)
SPLITS = (catalog.TRAIN_SPLIT, catalog.HELDOUT_SPLIT)
_SAMPLE = 64  # problems of a split that are looked at before a run
_CHUNK = 250  # golds that a worker gets at a time
_MOST_WORKERS = 8
_SUITABLE = ("numeric", "math_verify", "exact")  # what else may read a gold, the strictest first


Members = list[tuple[float, prompts.Tokenized]]  # (rate, prompts) of each task


class Part(NamedTuple):
  """A split of a task, looked through."""

  task: catalog.Task
  split: str
  reading: splits.Reading
  made: prompts.Tokenized
  unreadable: list[LeftOut]  # golds that the task's verifier can't read


def ticket_fault(config, vocab_size: int) -> Callable[[prompts.Example], str | None]:
  """Says why no sampler could answer a prompt: what it, and the wire, would say to its ticket."""
  completions = max(config.learner.group_size, config.evaluation.samples)

  def fault(example: prompts.Example) -> str | None:
    """None where a sampler can."""
    message = codec.encode_ticket(
      types.Ticket(
        "train/0/0",
        types.TRAIN,
        0,
        0,
        example.prompt_tokens,
        example.answer,
        0,
        0,
        completions,
        config.sampler.temperature,
      )
    )
    try:
      codec.check_ticket(
        codec.decode_ticket(message),
        vocab_size=vocab_size,
        max_completions=completions,
        max_prompt_tokens=config.task.max_prompt_tokens,
      )
      size = example.prompt_tokens.size
      bounds.check_prompt(size, example.answer, config.transport.max_message_mb, "ticket")
    except codec.WireError as error:
      return str(error)
    return None

  return fault


def examples(config, split: str, policy: build.Policy) -> Members:
  """(rate, prompts) of each task that the configuration mixes.

  Raises:
    TaskError: problems can't be had, or too many make no prompt.
  """
  return prompts.members(
    catalog.of(config.task),
    split,
    policy.words,
    config.task.max_prompt_tokens,
    ticket_fault(config, policy.model.vocab_size),
  )


def summary(name: str, train: Members, held: Members) -> str:
  """A line about the prompts of a task."""
  count = lambda members, field: sum(len(getattr(made, field)) for _, made in members)
  told = (
    f"task {name}: {count(train, 'examples')} prompts, {count(held, 'examples')} held out, "
    f"{count(train, 'too_long')} and {count(held, 'too_long')} too long"
  )
  left_out = [row for _, made in (*train, *held) for row in made.left_out]
  if not left_out:
    return told
  return f"{told}, {len(left_out)} can't be used: {left_out[0].where}: {left_out[0].why}"


def check_start(config) -> None:
  """What a run has to pass before it makes its directory, see `check_problems`.

  Raises:
    ConfigError: a run could not start.
    tokenizer.TokenizerError, families.UnsupportedModel: as `build.policy_of`.
  """
  selection, policy = config_lib.check_data(config), policy_of(config)
  check_messages(config, policy)
  check_problems(config, selection, policy)


def check_problems(config, selection: catalog.Selection, policy: build.Policy) -> None:
  """Looks at some problems of each task, and where something is wrong at all; ConfigError.

  Tasks that are slow to list are passed over: all prompts of all tasks are read a little later.
  """
  quick = [i for i, task in enumerate(selection.tasks) if not task.slow]
  if not quick:
    return
  look = functools.partial(look_through, config, selection, policy, only=quick)
  try:
    found = look(sample=_SAMPLE)
  except pool.PoolError as error:  # who judges is the samplers' affair
    _LOG.warning("whether right answers can be judged is not looked at: %s", error)
    look = functools.partial(look, golds=False)
    found = look(sample=_SAMPLE)
  if any(part.made.left_out or part.unreadable or not part.made.examples for part in found):
    if any(len(part.reading.problems) > _SAMPLE for part in found):
      found = look()
    require(config, found)
  for part in found:
    if part.unreadable:
      where, why = part.unreadable[0]
      _LOG.warning(
        "task %s, %s: answers to %d problems can't be judged and earn nothing; the first: %s: %s",
        part.task.name,
        part.split,
        len(part.unreadable),
        where,
        why,
      )


def policy_of(config) -> build.Policy:
  """The policy that a run of this configuration begins with; the configuration stays as it is."""
  config, folder = config_lib.from_json(config_lib.to_json(config)), config.model.checkpoint
  files = tokenizer.read_files(pathlib.Path(folder)) if folder else None
  build.fix_day(config, files)
  return build.policy_of(config, files)


def check_messages(config, policy: build.Policy) -> None:
  """ConfigError when what samplers are told first is larger than a message may be.

  Groups and prompts are `config.validate`'s and `ticket_fault`'s; weights go in pieces.
  """
  most, size = config.transport.max_message_mb, _hello_bytes(config, policy)
  if size > most << 20:
    raise config_lib.ConfigError(
      f"transport.max_message_mb: got {most}, expected at least {(size >> 20) + 1}: the model's "
      "tokenizer and the configuration have to fit"
    )


def _hello_bytes(config, policy: build.Policy) -> int:
  """About what a sampler is told when it joins."""
  files = (text for text in policy.files or () if isinstance(text, str))
  return sum(len(text.encode()) for text in files) + len(config_lib.to_json(config)) + 4096


def largest_message(config, policy: build.Policy) -> tuple[str, int]:
  """(what it is, bytes at most) of a run's messages, those of weights aside."""
  completions = max(config.learner.group_size, config.evaluation.samples)
  tokens = config.task.max_completion_tokens
  group = f"a group of {completions} completions with {tokens} tokens each"
  sizes = {
    group: bounds.max_group_bytes(completions, tokens),
    "the model's tokenizer and the configuration": _hello_bytes(config, policy),
  }
  return max(sizes.items(), key=lambda item: item[1])


def look_through(
  config,
  selection: catalog.Selection,
  policy: build.Policy,
  *,
  only: Sequence[int] | None = None,
  sample: int | None = None,
  golds: bool = True,
) -> list[Part]:
  """Renders problems and lets the verifiers read the right answers.

  Args:
    only: which tasks; None = all.
    sample: problems per task and split, spread evenly; None = all.
    golds: whether verifiers read them.

  Raises:
    TaskError: problems can't be had. pool.PoolError: a verifier can't.
  """
  fault = ticket_fault(config, policy.model.vocab_size)
  found, right = [], []
  for split in SPLITS:
    for i, (task, reading) in enumerate(zip(selection.tasks, selection.read(split), strict=True)):
      if only is not None and i not in only:
        continue
      chosen = _spread(reading.problems, sample)
      made = prompts.tokenized(chosen, policy.words, config.task.max_prompt_tokens, fault)
      found.append(Part(task, split, reading, made, unreadable=[]))
      right.append(chosen if len(selection.tasks) == 1 else list(map(_of_task, chosen)))
  if not golds:
    return found
  unreadable = _unreadable(config.task, [part.task.verifier for part in found], right)
  return [part._replace(unreadable=left) for part, left in zip(found, unreadable, strict=True)]


def _spread(problems: list, sample: int | None) -> list:
  """So many of them, evenly spaced."""
  return problems if sample is None else problems[:: max(1, -(-len(problems) // sample))]


def _of_task(problem: sources.Problem) -> sources.Problem:
  """A problem of a mixture with the answer data that its task gave it."""
  return dataclasses.replace(problem, answer=json.loads(problem.answer)["answer"])


def _unreadable(
  task, names: Sequence[str], golds: Sequence[list[sources.Problem]]
) -> list[list[LeftOut]]:
  """Those of each list that the verifier of that name can't read; in processes, with its limits."""
  chunks = [
    (place, name, problems[i : i + _CHUNK])
    for place, (name, problems) in enumerate(zip(names, golds, strict=True))
    for i in range(0, len(problems), _CHUNK)
    if name != verifiers.NAMED["exact"]  # reads everything
  ]
  found = [[] for _ in golds]
  if not chunks:
    return found
  with contextlib.closing(
    pool.Pool(
      min(1 + sum(map(len, golds)) // _CHUNK, _MOST_WORKERS, os.cpu_count() or 1),
      prepare=functools.partial(scoring.allow, tuple(dict.fromkeys(names))),
      time_limit=task.verifier_seconds,
      memory_mb=task.verifier_memory_mb,
    )
  ) as workers:
    handles = [
      workers.submit(_why_unreadable, [(name, problem.answer) for problem in problems])
      for _, name, problems in chunks
    ]
    for (place, _, problems), handle in zip(chunks, handles, strict=True):
      pairs = zip(problems, handle.result(), strict=True)
      found[place] += [LeftOut(problem.where, _told(why)) for problem, why in pairs if why]
  return found


def _why_unreadable(name: str, answer: str) -> str | None:
  """Runs in a worker; names a verifier that would suit."""
  ours = name in verifiers.NAMED.values()
  if not ours and not isinstance(json.loads(answer), str):
    return None  # only its verifier knows what is right
  why = verifiers.why_unreadable(name, answer)
  if why is None:
    return None
  others = [short for short in _SUITABLE if verifiers.NAMED[short] != name]
  suits = next((short for short in others if _reads(short, answer)), None)
  return why + (f"; task.verifier={suits} can" if suits else "")


def _reads(short: str, answer: str) -> bool:
  try:
    return verifiers.why_unreadable(verifiers.NAMED[short], answer) is None
  except Exception:  # a package is missing, or the answer is of another kind
    return False


def _told(why: str | pool.Failed) -> str:
  return why.reason if isinstance(why, pool.Failed) else why


def require(config, found: Sequence[Part]) -> None:
  """Raises ConfigError when a run could not start with what was looked through."""
  try:
    for part in found:
      left_out = [*part.made.left_out, *part.unreadable]
      splits.refuse_too_many(left_out, len(part.reading.problems), part.task.max_bad_rows)
    for split in SPLITS:
      require_some(config, split, [part.made for part in found if part.split == split])
  except TaskError as error:
    raise config_lib.ConfigError(str(error)) from None


def require_some(config, split: str, made: Sequence[prompts.Tokenized]) -> None:
  """TaskError unless every task has prompts to train on, or one has some that are held out."""
  counts = [len(one.examples) for one in made]
  if all(counts) if split == catalog.TRAIN_SPLIT else any(counts):
    return
  worst = min(made, key=lambda one: len(one.examples))
  raise TaskError(
    f"task.max_prompt_tokens: got {config.task.max_prompt_tokens}, which leaves no prompt of task "
    f"{config.task.name}, split {split}: {len(worst.too_long)} are too long (the shortest has "
    f"{min(worst.prompt_lengths, default=0)} tokens) and {len(worst.left_out)} can't be used"
  )
