"""Evaluates a published checkpoint, or the newest one of a run, on this machine alone."""

import json
import pathlib
import time
from collections.abc import Iterator

import jax
import numpy as np
import rich.progress
import rich.table

from offpolicy_rl import files as files_lib
from offpolicy_rl import types
from offpolicy_rl.evaluation import estimates, requests, votes
from offpolicy_rl.model import policy as policy_lib
from offpolicy_rl.model import pretrained
from offpolicy_rl.roles import build, data
from offpolicy_rl.sampler import worker
from offpolicy_rl.system import output
from offpolicy_rl.tasks import catalog, stream, tokenizer

_WIDTH_MULTIPLE = 16  # prompt columns: few shapes to compile, little padding


def run(
  config,
  *,
  ks: tuple[int, ...],
  split: str,
  problems: int | None,
  out: pathlib.Path,
  run_dir: pathlib.Path | None,
) -> dict:
  """Answers problems greedily and by sampling; prints a table, writes `out`, returns eval.json.

  `out`/problems.jsonl holds every problem with its completions, `out`/eval.json the estimates. Both
  are functions of the weights, the configuration and the seed. When it fails, `out` is not there.

  Args:
    config: checked; the weights are those of `config.model.checkpoint` when `run_dir` is None.
    ks: ascending, none above `config.evaluation.samples`.
    split: "heldout" or "train".
    problems: how many, from the beginning; None = all.

  Raises:
    ValueError: no prompt is short enough.
    RuntimeError, ValueError, OSError: the weights or the tokenizer can't be read.
  """
  console = output.console()
  files = _files(config, run_dir)
  build.fix_day(config, files)
  policy = build.policy_of(config, files)
  for note in build.sampling_notes(config, policy):
    console.print(note, markup=False)
  examples, skipped = _examples(config, policy, split)
  examples = examples[:problems]
  step, params = _weights(config, policy, run_dir)
  started = time.perf_counter()
  with files_lib.new_directory(out) as half:
    answered, counts = _write_answers(
      half / "problems.jsonl", _answer(config, policy, params, examples, console)
    )
    seconds = time.perf_counter() - started
    found = {
      "weights": str(run_dir or config.model.checkpoint),
      "step": step,
      "task": config.task.to_dict(),
      "split": split,
      "problems": len(examples),
      **skipped,
      "samples": config.evaluation.samples,
      "temperature": config.sampler.temperature,
      "seed": config.seed,
      "estimates": [e._asdict() for e in estimates.estimates(answered, ks, seed=config.seed)],
      **_totals(counts),
    }
    (half / "eval.json").write_text(json.dumps(found, indent=2) + "\n")
  _show(console, found, seconds=seconds, out=out)
  return found


def _write_answers(path: pathlib.Path, rows: Iterator[dict]):
  """(verdicts, counts) of each row, which goes into the file; all texts at once would be many."""
  answered, counts = [], []
  with path.open("w", encoding="utf-8") as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + "\n")
      answered.append(_verdicts(row))
      counts.append(_counts(row))
  return answered, counts


def _files(config, run_dir: pathlib.Path | None) -> types.ModelFiles | None:
  if run_dir is not None:
    return build.model_files(config, run_dir, resume=True)
  return tokenizer.read_files(pathlib.Path(config.model.checkpoint))


def _examples(config, policy: build.Policy, split: str):
  """(prompts in their order, numbers of those that are too long or can't be used)."""
  data.check_problems(config, catalog.of(config.task), policy)
  members = data.examples(config, split, policy)
  data.require_some(config, split, [made for _, made in members])
  examples = stream.in_turn([(rate, made.examples) for rate, made in members])
  return examples, {
    "prompts_too_long": sum(len(made.too_long) for _, made in members),
    "prompts_left_out": sum(len(made.left_out) for _, made in members),
  }


def _weights(config, policy: build.Policy, run_dir: pathlib.Path | None):
  """(step or None, parameters on the first device)."""
  if run_dir is not None:
    return build.newest_params(run_dir, policy.model)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  published = pretrained.Checkpoint(pathlib.Path(config.model.checkpoint))
  return None, published.load(jax.tree.map(lambda _: here, policy_lib.shapes(published.config)))


def _answer(config, policy: build.Policy, params, examples, console) -> Iterator[dict]:
  """One row of problems.jsonl per example, in order."""
  slots, samples = config.sampler.slots, config.evaluation.samples
  longest = max(example.prompt_tokens.size for example in examples)
  columns = longest + -longest % _WIDTH_MULTIPLE
  greedy, sampled = (
    build.make_engine(config, policy, group_size=size, max_prompt_tokens=columns)
    for size in (1, samples)
  )
  made = requests.tickets(
    examples,
    name="eval",
    version=0,
    step=0,
    num_samples=samples,
    temperature=config.sampler.temperature,
  )
  starts = range(0, len(made), 2 * slots)
  with build.scorer(config.task) as scorer:
    for start in rich.progress.track(starts, "problems", console=console, transient=True):
      tickets = made[start : start + 2 * slots]
      groups = [
        group
        for ask, of_kind in ((greedy, tickets[::2]), (sampled, tickets[1::2]))
        for group in worker.score_groups(
          scorer,
          policy.words,
          of_kind,
          ask.generate(params, 0, of_kind),
          judge_unfinished=config.task.judge_unfinished,
        )
      ]
      half = len(groups) // 2
      for ticket, one, many in zip(tickets[::2], groups[:half], groups[half:], strict=True):
        yield _row(policy.words, ticket, one, many, config.task.judge_unfinished)


def _row(
  words, ticket: types.Ticket, greedy: types.Group, sampled: types.Group, judge_unfinished: bool
) -> dict:
  completions = [*greedy.trajectories, *sampled.trajectories]
  texts = worker.judged_texts(words, ticket, completions, judge_unfinished=judge_unfinished)
  first, *others = [
    _completion(words, trajectory, text)
    for trajectory, text in zip(completions, texts, strict=True)
  ]
  return {
    "index": ticket.group_index,
    "prompt": words.whole_text(ticket.prompt_tokens.tolist()),
    "answer": ticket.answer,
    "greedy": first,
    "samples": others,
    "verifier_failures": greedy.verifier_failures + sampled.verifier_failures,
  }


def _completion(words, trajectory: types.Trajectory, judged: str | None) -> dict:
  """`logprob`: of the whole completion, in nats, under what it was drawn from; 0 when greedy.

  `judged`: what the verifier saw of it.
  """
  return {
    "text": words.decode(trajectory.tokens.tolist()),
    "final_answer": None if judged is None else votes.final_answer(judged),
    "reward": trajectory.reward,
    "finished": trajectory.finished,
    "tokens": trajectory.tokens.size,
    "logprob": float(trajectory.logprobs.sum(dtype=np.float64)),
  }


def _verdicts(row: dict) -> estimates.Verdicts:
  return estimates.Verdicts(
    greedy=row["greedy"]["reward"] == 1.0,
    correct=[sample["reward"] == 1.0 for sample in row["samples"]],
    answers=[sample["final_answer"] for sample in row["samples"]],
  )


def _counts(row: dict) -> dict:
  """What the totals need of a problem."""
  samples = row["samples"]
  return {
    "tokens": sum(sample["tokens"] for sample in samples),
    "cut": sum(not sample["finished"] for sample in samples),
    "greedy_tokens": row["greedy"]["tokens"],
    "greedy_cut": int(not row["greedy"]["finished"]),
    "completions": len(samples),
    "failures": row["verifier_failures"],
  }


def _totals(rows: list[dict]) -> dict:
  total = {key: sum(row[key] for row in rows) for key in rows[0]}
  return {
    "mean_tokens": total["tokens"] / total["completions"],
    "cut_fraction": total["cut"] / total["completions"],
    "greedy_mean_tokens": total["greedy_tokens"] / len(rows),
    "greedy_cut_fraction": total["greedy_cut"] / len(rows),
    "verifier_failures": total["failures"],
  }


def _show(console, found: dict, *, seconds: float, out: pathlib.Path) -> None:
  at = "" if found["step"] is None else f", step {found['step']}"
  table = rich.table.Table(title=f"{found['task']['name']} ({found['split']}){at}")
  for column in ("", "estimate", "95 % interval"):
    table.add_column(column, justify="left" if not column else "right")
  for row in found["estimates"]:
    table.add_row(row["name"], f"{row['value']:.3f}", f"{row['low']:.3f} – {row['high']:.3f}")
  console.print(table)
  completions = found["problems"] * (found["samples"] + 1)
  tokens = found["problems"] * (
    found["samples"] * found["mean_tokens"] + found["greedy_mean_tokens"]
  )
  console.print(
    f"{found['problems']} problems, {found['samples']} samples at temperature "
    f"{found['temperature']:g}: {found['mean_tokens']:.1f} tokens on average, "
    f"{found['cut_fraction']:.1%} cut; {found['verifier_failures']} verifier failures; "
    f"{found['prompts_too_long']} prompts too long, {found['prompts_left_out']} can't be used"
  )
  console.print(f"{completions} completions, {tokens / seconds:,.0f} tokens/s; written to {out}")
