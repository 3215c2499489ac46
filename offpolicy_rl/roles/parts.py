"""From the configuration to the parts that both roles share."""

import dataclasses
import json
import pathlib
import shutil

from offpolicy_rl import config as config_lib
from offpolicy_rl import losses, types
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.learner import step
from offpolicy_rl.model import decoder, families, pretrained
from offpolicy_rl.replay import lag, packing, schedule
from offpolicy_rl.sampler import engine
from offpolicy_rl.tasks import catalog, tokenizer, vocabulary
from offpolicy_rl.transport import weights


@dataclasses.dataclass(frozen=True)
class Policy:
  """What both roles know about the policy besides its weights."""

  model: decoder.DecoderConfig
  words: vocabulary.Vocabulary | tokenizer.Tokenizer
  files: types.ModelFiles | None = None  # of a published model


def policy_of(config, files: types.ModelFiles | None) -> Policy:
  """A fresh model with the task's vocabulary, or the published one that `files` belong to.

  Raises:
    ConfigError, families.UnsupportedModel, tokenizer.TokenizerError: it can't be used.
  """
  if files is None:
    words = catalog.of(config.task).vocabulary
    own = {key: value for key, value in config.model.items() if key != "checkpoint"}
    return Policy(decoder.DecoderConfig(vocab_size=words.size, **own), words)
  model = families.read(json.loads(files.config))
  config_lib.require(config_lib.architecture_relations(dataclasses.asdict(model), config.mesh))
  words = tokenizer.Tokenizer(files, template=config.task.prompt, chat=config.task.chat)
  return Policy(model, words, files)


def model_files(config, run_dir: pathlib.Path, *, resume: bool) -> types.ModelFiles | None:
  """Of the published checkpoint that the run begins with; kept in RUN/model for resume and export.

  `resume`: those kept are the run's own, the checkpoint may be gone; else they are copied anew.
  """
  if not config.model.checkpoint:
    return None
  source, kept = pathlib.Path(config.model.checkpoint), run_dir / "model"
  if not (resume and kept.is_dir()):
    tokenizer.read_files(source)  # refuses it before anything is touched
    half = run_dir / ".model-half"
    for old in (kept, half):
      shutil.rmtree(old, ignore_errors=True)
    half.mkdir()
    for path in (
      p for name in (pretrained.CONFIG, *pretrained.COMPANIONS) for p in source.glob(name)
    ):
      shutil.copy(path, half)
    half.rename(kept)
  return tokenizer.read_files(kept)


def step_choices(config, model: decoder.DecoderConfig) -> step.StepChoices:
  """What the learner's step is compiled for."""
  learner = config.learner
  optimizer = state_lib.make_optimizer(
    learning_rate=learner.learning_rate,
    num_steps=learner.steps,
    warmup_steps=learner.warmup_steps,
    schedule=learner.schedule,
    betas=(learner.adam_b1, learner.adam_b2),
    adam_eps=learner.adam_eps,
    weight_decay=learner.weight_decay,
    max_grad_norm=learner.max_grad_norm,
  )
  return step.StepChoices(
    model=model,
    objective=losses.objective(config_lib.objective_choices(config)),
    optimizer=optimizer,
    temperature=config.sampler.temperature,
    logprob_chunk=learner.logprob_chunk,
  )


def lag_control(config) -> lag.LagControl:
  """The lag mode; reads the recorded schedule of a replay."""
  recorded = None
  if config.lag.mode == lag.REPLAY:
    recorded = schedule.read(pathlib.Path(config.lag.schedule))
    if len(recorded.versions) < config.learner.steps:
      raise schedule.ScheduleError(
        f"learner.steps: got {config.learner.steps}, but {config.lag.schedule} recorded only "
        f"{len(recorded.versions)}"
      )
    if {len(row) for row in recorded.versions} - {config.learner.prompts_per_step}:
      raise schedule.ScheduleError(
        f"learner.prompts_per_step: got {config.learner.prompts_per_step}, but "
        f"{config.lag.schedule} recorded {len(recorded.versions[0])} groups per step"
      )
  return lag.LagControl(config.lag.mode, config.lag.max_lag, recorded)


def make_engine(config, policy: Policy) -> engine.Engine:
  """The generation engine of one sampler."""
  return engine.Engine(
    policy.model,
    slots=config.sampler.slots,
    prompts=max(1, config.sampler.slots // config.learner.group_size),
    max_prompt_tokens=config.task.max_prompt_tokens,
    max_tokens=config.task.max_completion_tokens,
    eos=policy.words.eos,
    seed=config.seed,
  )


def make_store(config, weights_dir: str | None, session: str):
  """Where the learner publishes: put, retain, versions, close."""
  if weights_dir is None:
    return weights.WeightStore(delta_bases=config.transport.delta_bases)
  from offpolicy_rl.transport import weights_dir as weights_dir_lib  # orbax: only where it is used

  return weights_dir_lib.Publisher(weights_dir, session)


def limits(config) -> packing.Limits:
  """How batches are laid out."""
  learner, task = config.learner, config.task
  longest = (task.max_prompt_tokens, task.max_completion_tokens)
  return packing.Limits(
    learner.layout,
    *longest,
    columns=learner.row_tokens or packing.row_columns(learner.layout, *longest, learner.group_size),
    shards=config.mesh.data * config.mesh.fsdp,
    buckets=learner.buckets,
  )
