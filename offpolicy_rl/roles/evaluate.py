"""Evaluates a published checkpoint, or a run's newest one, on this machine."""

import json
import pathlib
import time
from collections.abc import Iterator

import numpy as np
import rich.progress
import rich.table
from ml_collections import ConfigDict

from offpolicy_rl import config as config_lib
from offpolicy_rl import files as files_lib
from offpolicy_rl import types
from offpolicy_rl.evaluation import estimates, requests, votes
from offpolicy_rl.roles import build, data, run_files, trained
from offpolicy_rl.sampler import worker
from offpolicy_rl.system import output
from offpolicy_rl.tasks import stream

_WIDTH_MULTIPLE = 16  # prompt columns: few shapes to compile, little padding


def run(
  config: ConfigDict,
  *,
  ks: tuple[int, ...],
  split: str,
  problems: int | None,
  out: pathlib.Path,
  run_dir: pathlib.Path | None,
) -> dict:
  """Answers problems greedily and by sampling; prints a table, writes `out`, returns eval.json.

  `out`/problems.jsonl holds every problem with its completions, `out`/eval.json the estimates. Both
  depend only on weights, configuration and seed. `out` is not created on failure.

  Args:
    config: checked; its model.checkpoint has the weights if `run_dir` is None.
    ks: ascending, none above `config.evaluation.samples`.
    split: "heldout" or "train".
    problems: number of problems, from the first; None = all.

  Raises:
    ValueError: no prompt is short enough.
    RuntimeError, ValueError, OSError: the weights or the tokenizer can't be read.
  """
  console = output.console()
  files = trained.model_files(config, run_dir)
  build.fill_in(config, files)
  policy = build.make_policy(config, files)
  for note in build.sampling_notes(config, policy):
    console.print(note, markup=False)
  examples, skipped = _examples(config, policy, split)
  examples = examples[:problems]
  step, params = trained.weights(config, policy, run_dir)
  started = time.perf_counter()
  with files_lib.new_directory(out) as folder:
    rows = _write(folder / "problems.jsonl", _answer(config, policy, params, examples, console))
    seconds, verdicts = time.perf_counter() - started, list(map(_verdicts, rows))
    result = {
      "weights": str(run_dir or config.model.checkpoint),
      "step": step,
      "split": split,
      **skipped,
      **_settings(config),
      "problems": len(examples),
      **_estimates(examples, verdicts, ks, config.seed),
      **_totals(rows),
      "metrics": _metrics(examples, [row["greedy"]["text"] for row in rows]),
    }
    (folder / "eval.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
  _show(console, result, seconds=seconds, out=out)
  return result


def _settings(config: ConfigDict) -> dict:
  return {
    "task": config.task.to_dict(),
    "samples": config.evaluation.samples,
    "temperature": config.sampler.temperature,
    "seed": config.seed,
  }


def _estimates(
  examples: list, verdicts: list[estimates.Verdicts], ks: tuple[int, ...], seed: int
) -> dict:
  """Estimates over all problems, and over those of each task if there are several."""
  of = lambda some: [e._asdict() for e in estimates.estimates(some, ks, seed=seed)]
  by_task = {example.task: [] for example in examples}
  for example, verdict in zip(examples, verdicts, strict=True):
    by_task[example.task].append(verdict)
  tasks = {name: of(some) for name, some in by_task.items()} if len(by_task) > 1 else {}
  return {"estimates": of(verdicts), "tasks": tasks}


def _metrics(examples: list, greedy: list[str]) -> dict[str, dict[str, float]]:
  """Values of the metric_fns of seqio's Tasks for the greedy completions."""
  pairs = zip(examples, greedy, strict=True)
  answered = [(example.record, text) for example, text in pairs if example.record is not None]
  if not answered:
    return {}
  from offpolicy_rl.tasks import seqio_reader  # TensorFlow; it has read the problems

  return seqio_reader.metrics(answered)


def _write(path: pathlib.Path, rows: Iterator[dict]) -> list[dict]:
  """Writes each row; returns what the estimates read of them, to save memory."""
  kept = []
  with path.open("w", encoding="utf-8") as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + "\n")
      without_text = [{k: v for k, v in x.items() if k != "text"} for x in row["samples"]]
      kept.append({k: row[k] for k in ("greedy", "verifier_failures")} | {"samples": without_text})
  return kept


def _examples(config, policy: build.Policy, split: str):
  """(prompts in order, counts of those left out)."""
  selection = config_lib.selection(config).expanded()
  data.check_problems(config, selection, policy)
  members = data.examples(config, selection, policy, split)
  data.require_some(config, split, [made for _, made in members])
  examples = stream.interleaved([(rate, made.examples) for rate, made in members])
  return examples, {
    "prompts_too_long": sum(len(made.too_long) for _, made in members),
    "prompts_left_out": sum(len(made.left_out) for _, made in members),
  }


def _answer(config, policy: build.Policy, params, examples, console) -> Iterator[dict]:
  slots, samples = config.sampler.slots, config.evaluation.samples
  longest = max(example.prompt_tokens.size for example in examples)
  columns = longest + -longest % _WIDTH_MULTIPLE
  made = build.engine_of(config, policy, group_size=samples, max_prompt_tokens=columns)
  temperature = config.sampler.temperature
  tickets = requests.tickets(
    examples, name="eval", version=0, step=0, num_samples=samples, temperature=temperature
  )
  starts = range(0, len(tickets), 2 * slots)
  with made as engine, build.scoring_of(config, policy) as score:
    for start in rich.progress.track(starts, "problems", console=console, transient=True):
      some = tickets[start : start + 2 * slots]  # a greedy and a sampled one for each problem
      answers = engine.generate(params, 0, some)
      groups = score(some, answers)
      for ticket, greedy, sampled in zip(some[::2], groups[::2], groups[1::2], strict=True):
        yield _row(config, policy.tokenizer, ticket, greedy, sampled)


def _row(
  config: ConfigDict, words, ticket: types.Ticket, greedy: types.Group, sampled: types.Group
) -> dict:
  trajectories = [*greedy.trajectories, *sampled.trajectories]
  judge_unfinished = config.task.judge_unfinished
  texts = worker.judged_texts(words, ticket, trajectories, judge_unfinished=judge_unfinished)
  if ticket.environment:
    texts = [None] * len(texts)  # episodes have no final answer to vote with
  completions = [_completion(words, *pair) for pair in zip(trajectories, texts, strict=True)]
  return {
    "index": ticket.group_index,
    "prompt": words.decode_all(ticket.prompt_tokens.tolist()),
    "answer": ticket.answer,
    "greedy": completions[0],
    "samples": completions[1:],
    "verifier_failures": greedy.verifier_failures + sampled.verifier_failures,
  }


def _completion(words, trajectory: types.Trajectory, judged: str | None) -> dict:
  """`judged`: the text that the verifier saw. `logprob`: sum over tokens, nats; 0 when greedy."""
  return {
    "text": run_files.text_of(words, trajectory),
    "final_answer": None if judged is None else votes.final_answer(judged),
    "reward": trajectory.reward,
    "finished": trajectory.finished,
    "ended": trajectory.ended,
    "tokens": trajectory.tokens.size,
    "logprob": float(trajectory.logprobs.sum(dtype=np.float64)),
  }


def _verdicts(row: dict) -> estimates.Verdicts:
  """The rewards are verdicts: they are shaped in training only."""
  return estimates.Verdicts(
    greedy=row["greedy"]["reward"] == 1.0,
    correct=[sample["reward"] == 1.0 for sample in row["samples"]],
    answers=[s["final_answer"] for s in row["samples"] if not s["ended"]],
  )


def _totals(rows: list[dict]) -> dict:
  greedy, samples = [row["greedy"] for row in rows], [s for row in rows for s in row["samples"]]
  return {
    "mean_tokens": sum(one["tokens"] for one in samples) / len(samples),
    "cut_fraction": sum(not one["finished"] for one in samples) / len(samples),
    "greedy_mean_tokens": sum(one["tokens"] for one in greedy) / len(greedy),
    "greedy_cut_fraction": sum(not one["finished"] for one in greedy) / len(greedy),
    "verifier_failures": sum(row["verifier_failures"] for row in rows),
  }


def _show(console, result: dict, *, seconds: float, out: pathlib.Path) -> None:
  step = "" if result["step"] is None else f", step {result['step']}"
  table = rich.table.Table(title=f"{result['task']['name']} ({result['split']}){step}")
  for column in ("", "estimate", "95 % interval"):
    table.add_column(column, justify="left" if not column else "right")
  for task, rows in {"": result["estimates"], **result["tasks"]}.items():
    for row in rows:
      name = f"{task} {row['name']}" if task else row["name"]
      table.add_row(name, f"{row['value']:.3f}", f"{row['low']:.3f} – {row['high']:.3f}")
  console.print(table)
  for task, values in result["metrics"].items():
    listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
    console.print(f"{task}: greedy completions by its own metrics: {listed}", markup=False)
  completions = result["problems"] * (result["samples"] + 1)
  tokens = result["problems"] * (
    result["samples"] * result["mean_tokens"] + result["greedy_mean_tokens"]
  )
  console.print(
    f"{result['problems']} problems, {result['samples']} samples at temperature "
    f"{result['temperature']:g}: {result['mean_tokens']:.1f} tokens on average, "
    f"{result['cut_fraction']:.1%} cut; {result['verifier_failures']} verifier failures; "
    f"{result['prompts_too_long']} prompts too long, {result['prompts_left_out']} can't be used"
  )
  console.print(f"{completions} completions, {tokens / seconds:,.0f} tokens/s; written to {out}")
