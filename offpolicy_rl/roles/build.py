"""Builds what several roles use from a configuration: policies, engines and their scoring."""

import contextlib
import dataclasses
import datetime
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Generator, Mapping

import jax
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import files as files_lib
from offpolicy_rl import types
from offpolicy_rl.environments import environment, episodes, processes, tools
from offpolicy_rl.model import decoder, families, lora, names, pretrained, sharding
from offpolicy_rl.replay import lag, packing
from offpolicy_rl.sampler import engine, sampling, sizing, stopping, worker
from offpolicy_rl.tasks import (
  catalog,
  chat,
  judge,
  scoring,
  shaping,
  thoughts,
  tokenizer,
  turns,
  vocabulary,
)

_NO_ARCHITECTURE = ("checkpoint", "lora_rank", "lora_alpha", "lora_targets")
Score = Callable[[list[types.Ticket], list[list[types.Trajectory]]], list[types.Group]]
Words = vocabulary.Vocabulary | tokenizer.Tokenizer


@dataclasses.dataclass(frozen=True)
class Policy:
  """The model, tokenizers and files of a policy, without its weights.

  `with_tools`: tokenizers whose prompts show the tools of an environment, by its name.
  """

  model: decoder.DecoderConfig
  tokenizer: Words
  files: types.ModelFiles | None = None  # of a published model
  with_tools: Mapping[str, tokenizer.Tokenizer] = dataclasses.field(default_factory=dict)

  def words(self, environment: str) -> Words:
    """The tokenizer whose prompts show the tools of an environment of the run, if it has any."""
    return self.with_tools.get(environment, self.tokenizer)


def make_policy(config: ConfigDict, files: types.ModelFiles | None) -> Policy:
  """Makes a fresh model with the task's vocabulary, or the published one that `files` belong to.

  Raises:
    ConfigError, families.UnsupportedModel, tokenizer.TokenizerError: it can't be used.
  """
  stop, task = json.loads(config.sampler.stop or "[]"), config.task
  if files is None:
    characters = catalog.select(task).vocabulary.stopping(stop)
    architecture = {k: v for k, v in config.model.items() if k not in _NO_ARCHITECTURE}
    model = decoder.DecoderConfig(vocab_size=characters.size, **architecture)
    return Policy(_with_adapters(model, config.model), characters)
  model = published_model(config, families.parse(files.config))
  published = functools.partial(
    tokenizer.Tokenizer,
    files,
    template=task.prompt,
    chat=task.chat,
    system=task.system_prompt,
    stop=stop,
    vocab_size=model.vocab_size,
    day=datetime.date.fromisoformat(task.chat_date) if task.chat_date else None,
  )
  by_environment = {name: published(arguments=x) for name, x in _chat_arguments(config).items()}
  return Policy(model, by_environment.pop(""), files, by_environment)


def _chat_arguments(config: ConfigDict) -> dict[str, dict]:
  """Variables of the chat template by environment with tools; those of all others are at ""."""
  given = json.loads(config.task.chat_arguments or "{}")
  tools_of = config_lib.tools(config).items()
  return {"": given} | {name: {"tools": shown} | given for name, shown in tools_of if shown}


def fill_in(config: ConfigDict, files: types.ModelFiles | None) -> None:
  """Sets what prompts depend on, if it is empty: environment.tools to those of the environment,
  task.chat_date to today if the chat template uses the date.

  Raises:
    ValueError: the environment can't be found.
    tokenizer.TokenizerError: a file can't be read.
  """
  task = config.task
  if files is None or not task.chat:
    return
  _record_tools(config)
  shown = {variables.get("tools") is not None for variables in _chat_arguments(config).values()}
  if not task.chat_date and any(chat.depends_on_date(files, tools=tools) for tools in shown):
    task.chat_date = datetime.date.today().isoformat()


def _record_tools(config: ConfigDict) -> None:
  given, mixed = config_lib.tools(config), config.task.name == catalog.MIXTURE
  recorded = dict(given)
  for name, key in config_lib.environments(config).items():
    place = name if mixed else ""
    if place not in given:
      functions = getattr(environment.resolve(name, key), "tools", ())
      recorded[place] = list(map(tools.describe, functions))
  if recorded != given:
    config.environment.tools = json.dumps(recorded if mixed else recorded[""])


def sampling_notes(config: ConfigDict, policy: Policy) -> list[str]:
  """Lines that say what ends a completion and how prompts are rendered."""
  words = policy.tokenizer
  texts = [f"the text {text!r}" for text in words.stop_texts]
  ends = ", ".join([tokenizer.describe_ends(words), *texts])
  notes = [f"a completion ends with {ends}, or after {config.task.max_completion_tokens} tokens"]
  if policy.files is not None and isinstance(words, tokenizer.Tokenizer):
    notes += [*words.turn_notes(), *tokenizer.notes(policy.files)]
    told = [note for shown in (words, *policy.with_tools.values()) for note in shown.tool_notes()]
    notes += dict.fromkeys(told)  # the same template
  return notes


def published_model(config: ConfigDict, architecture: dict) -> decoder.DecoderConfig:
  """Makes the model of a published config.json, with the configuration's adapters and dtype.

  Raises:
    ConfigError, families.UnsupportedModel: it can't be used.
  """
  model = _with_adapters(families.read(architecture), config.model)
  model = dataclasses.replace(model, compute_dtype=config.model.compute_dtype)
  config_lib.check_architecture(config, dataclasses.asdict(model))
  return model


def _with_adapters(model: decoder.DecoderConfig, settings) -> decoder.DecoderConfig:
  if not settings.lora_rank:
    return model
  targets = tuple(dict.fromkeys(settings.lora_targets.split(",")))
  if model.num_experts and set(targets) & {"w_gate", "w_up", "w_down"}:
    raise config_lib.ConfigError(
      f"model.lora_targets: got {settings.lora_targets}, expected some of w_q,w_k,w_v,w_o: experts "
      "have no adapters"
    )
  return dataclasses.replace(
    model, lora_rank=settings.lora_rank, lora_alpha=float(settings.lora_alpha), lora_targets=targets
  )


def model_files(
  config: ConfigDict, run_dir: pathlib.Path, *, resume: bool
) -> types.ModelFiles | None:
  """Copies the small files of the published checkpoint of a run to RUN/model and reads them.

  `resume`: reads the copies, as the checkpoint may be gone. None if the run has a fresh model.
  """
  if not config.model.checkpoint:
    return None
  source, kept = pathlib.Path(config.model.checkpoint), run_dir / "model"
  if not (resume and kept.is_dir()):
    tokenizer.read_files(source)  # raises before anything is touched
    shutil.rmtree(kept, ignore_errors=True)
    with files_lib.new_directory(kept) as half:
      files_lib.copy_matching(source, half, (pretrained.CONFIG, *pretrained.COMPANIONS))
  return tokenizer.read_files(kept)


def engine_sizes(config: ConfigDict, *, group_size: int, max_prompt_tokens: int) -> sizing.Sizes:
  """Sizes of a generation engine; arguments as for `engine_of`."""
  sampler = config.sampler
  return sizing.Sizes(
    slots=sampler.slots,
    group_size=group_size,
    max_prompt_tokens=max_prompt_tokens,
    max_tokens=config.task.max_completion_tokens,
    page_tokens=sampler.page_tokens,
    cache_tokens=sampler.cache_tokens,
    prefill_tokens=sampler.prefill_tokens,
    steps=sampler.decode_steps,
    candidates=sampler.top_logprobs,
    episodes=_episodes(config),
  )


def _episodes(config: ConfigDict) -> int:
  if not config_lib.environments(config):
    return 0
  return config.environment.episodes or 2 * config.sampler.slots


def make_episodes(
  config: ConfigDict, policy: Policy, stack: contextlib.ExitStack
) -> episodes.Episodes | None:
  """Starts the environments of an engine, which end with `stack`; None if none is played."""
  settings, tokens = config.environment, config.task.max_completion_tokens
  keys = config_lib.environments(config)
  if not keys:
    return None

  @functools.cache
  def play() -> processes.Processes:
    made = processes.Processes(
      keys, processes=settings.processes, seconds=settings.seconds, memory_mb=settings.memory_mb
    )
    return stack.enter_context(contextlib.closing(made))

  if config.lag.mode != lag.REPLAY:  # else its tickets may say what environments said
    play()
  limits = episodes.Limits(tokens, settings.max_turns, settings.max_turn_tokens or tokens)
  history = functools.cache(lambda name: chat_history(config, policy.words(name)))
  return episodes.Episodes(play, policy.words, limits, config.seed, history)


def chat_history(config: ConfigDict, words: Words) -> turns.ChatHistory | None:
  """The chat template that writes what came before in an episode; None = it stays as it was.

  Raises:
    tokenizer.TokenizerError: the template can't be used for that.
  """
  rewritten = config.environment.history == thoughts.REWRITE
  in_chat = rewritten and isinstance(words, tokenizer.Tokenizer)
  return turns.ChatHistory(words) if in_chat else None


@contextlib.contextmanager
def engine_of(
  config: ConfigDict,
  policy: Policy,
  *,
  group_size: int,
  max_prompt_tokens: int,
  int8_weights: bool = False,
  mesh: jax.sharding.Mesh | None = None,
) -> Generator[engine.Engine]:
  """Makes a generation engine; adapters have to be merged into its parameters.

  The processes of its environments end with it.

  Args:
    group_size: completions per prompt.
    int8_weights: whether the parameters are quantized.
    mesh: of the parameters; None = the first device.

  Raises:
    ValueError: an environment can't be used here.
  """
  sizes = engine_sizes(config, group_size=group_size, max_prompt_tokens=max_prompt_tokens)
  model = dataclasses.replace(lora.base_config(policy.model), int8_weights=int8_weights)
  with contextlib.ExitStack() as stack:
    yield engine.Engine(
      model,
      sizes,
      seed=config.seed,
      stops=stops(policy),
      truncation=truncation(config),
      mesh=mesh,
      episodes=make_episodes(config, policy, stack),
    )


def stops(policy: Policy) -> stopping.Stops:
  """Tokens and texts that end a completion."""
  words = policy.tokenizer
  return stopping.Stops(words.ends, words.stop_texts, words.decode_all, words.decode_special)


def truncation(config: ConfigDict) -> sampling.Truncation:
  """Truncation of the distribution that completions are drawn from."""
  return sampling.Truncation(config.sampler.top_k, config.sampler.top_p, config.sampler.min_p)


def learner_mesh(config: ConfigDict) -> jax.sharding.Mesh:
  """Makes the mesh of a learner, of all its processes; ConfigError if there are too few devices."""
  try:
    return sharding.make_mesh(**config.mesh)
  except ValueError as error:
    raise config_lib.ConfigError(str(error)) from None


def sampler_meshes(config: ConfigDict) -> list[jax.sharding.Mesh]:
  """Makes a mesh for each engine of a sampler from the devices of this machine.

  Raises:
    ValueError: there are too few devices.
  """
  number, size, devices = config.sampler.data, config.sampler.tensor, jax.local_devices()
  if number * size > len(devices):
    raise ValueError(
      f"sampler.data, sampler.tensor: got {number} x {size}, but this machine has {len(devices)} "
      "devices"
    )
  parts = [devices[i * size : (i + 1) * size] for i in range(number)]
  return [sharding.make_mesh(tensor=size, devices=part) for part in parts]


@contextlib.contextmanager
def scoring_of(config: ConfigDict, policy: Policy) -> Generator[Score]:
  """Makes the function that scores groups: by verifiers in processes, or as environments did.

  Raises:
    ValueError: a verifier can't be used here.
  """
  task, selection = config.task, config_lib.selection(config)
  shape = shaping.Shaping(task.format_reward, task.length_weight, task.failed_reward)
  with contextlib.ExitStack() as stack:
    verified = stack.enter_context(_scorer(task, selection)) if selection.judged else None
    scorer = stack.enter_context(_judged(config.judge, verified))
    yield functools.partial(
      worker.score_groups,
      scorer,
      policy.tokenizer,
      shape=shape,
      judge_unfinished=task.judge_unfinished,
    )


@contextlib.contextmanager
def _judged(
  settings: ConfigDict, scorer: scoring.Scorer | None
) -> Generator[scoring.Scorer | judge.JudgedScorer | None]:
  """The scorer, or one that asks a judge, too; ValueError if its key can't be used."""
  if not settings.url:
    yield scorer
    return
  made = judge.Settings(**settings.to_dict() | {"rubric": judge.rubric(settings.rubric)})
  judged = judge.JudgedScorer(judge.Judge(made, judge.api_key(made.url)), made, scorer)
  with contextlib.closing(judged):
    yield judged


def _scorer(task: ConfigDict, selection: catalog.Selection) -> scoring.Scorer:
  return scoring.Scorer(
    selection.verifier,
    also=selection.verifiers,
    modules=selection.modules,
    workers=task.verifier_processes,
    time_limit=task.verifier_seconds,
    memory_mb=task.verifier_memory_mb,
    pattern=task.format_pattern,
  )


def limits(config: ConfigDict, *, group_size: int) -> packing.Limits:
  """The layout of batches with groups of this size."""
  learner, task = config.learner, config.task
  longest = (task.max_prompt_tokens, task.max_completion_tokens)
  return packing.Limits(
    learner.layout,
    *longest,
    columns=learner.row_tokens or packing.row_columns(learner.layout, *longest, group_size),
    shards=names.batch_shards(config.mesh),
    buckets=learner.buckets,
  )
