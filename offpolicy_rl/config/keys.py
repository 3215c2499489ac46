"""Every key of a configuration but those of `objective`: its type, and which values make sense."""

import datetime
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from offpolicy_rl.replay import lag, packing
from offpolicy_rl.tasks import shaping
from offpolicy_rl.transport import bounds


class Key(NamedTuple):
  """What one value has to be."""

  kind: type
  is_good: Callable[[Any], bool]
  expected: str  # in words


def _one_of(*allowed) -> Key:
  return Key(type(allowed[0]), lambda x: x in allowed, "one of " + ", ".join(map(str, allowed)))


def _at_least(low: int) -> Key:
  return Key(int, lambda x: x >= low, f"at least {low}")


def _between(low: int, high: int) -> Key:
  return Key(int, lambda x: low <= x <= high, f"{low} to {high}")


def _from(low: float) -> Key:
  return Key(float, lambda x: x >= low, f"at least {low}")


def _text(expected: str, is_good: Callable[[str], bool] = lambda x: True) -> Key:
  return Key(str, is_good, expected)


def _is_pattern(text: str) -> bool:
  try:
    re.compile(text)
  except (re.error, RecursionError, OverflowError):
    return False
  return True


def _is_day_or_nothing(text: str) -> bool:
  try:
    return not text or bool(datetime.date.fromisoformat(text))
  except ValueError:
    return False


def _is_variables(text: str) -> bool:
  try:
    found = json.loads(text or "{}")
  except (ValueError, RecursionError):
    return False
  return isinstance(found, dict) and not _OF_PROMPTS & found.keys()


def _is_list_of_texts(text: str) -> bool:
  try:
    found = json.loads(text or "[]")
  except ValueError:
    return False
  return isinstance(found, list) and all(isinstance(x, str) and x for x in found)


_POSITIVE = Key(float, lambda x: x > 0, "a number > 0")
_FRACTION = Key(float, lambda x: 0 <= x < 1, "in [0, 1)")
_NAME = _text("the name of a column", bool)
_ANY_TEXT = _text("a text")  # judged together with other keys
# More would not fit beside the largest verdict in what may come over the wire.
_SHAPING = Key(float, lambda x: 0 <= x <= 1e6, "0 to 1e6")
_SWITCH = Key(bool, lambda x: True, "True or False")
_OF_PROMPTS = {"messages", "add_generation_prompt"}  # a prompt itself says these to a template
LORA_TARGETS = ("w_q", "w_k", "w_v", "w_o", "w_gate", "w_up", "w_down")

KEYS = {
  "seed": _between(0, 2**31 - 1),
  "task.name": _ANY_TEXT,
  "task.mixture": _ANY_TEXT,
  "task.data_dir": _ANY_TEXT,
  "task.train_file": _ANY_TEXT,
  "task.heldout_file": _ANY_TEXT,
  "task.question_column": _NAME,
  "task.answer_column": _NAME,
  "task.demonstration_column": _ANY_TEXT,
  "task.size": _at_least(1),
  "task.options": _ANY_TEXT,
  "task.max_bad_rows": _FRACTION,
  "task.prompt": _text("a text with {question} in it", lambda x: "{question}" in x),
  "task.system_prompt": _ANY_TEXT,
  "task.chat_arguments": _text(
    f"a JSON object of variables other than {', '.join(sorted(_OF_PROMPTS))}, or ''", _is_variables
  ),
  "task.chat_date": _text("YYYY-MM-DD, or ''", _is_day_or_nothing),
  "task.max_prompt_tokens": _at_least(1),
  "task.max_completion_tokens": _at_least(1),
  "task.verifier": _ANY_TEXT,
  "task.verifier_processes": _at_least(1),
  "task.verifier_seconds": _POSITIVE,
  "task.verifier_memory_mb": _at_least(0),
  "task.failed_reward": _one_of(shaping.ZERO, shaping.MEAN),
  "task.format_pattern": _text("a regular expression of Python, or '' for none", _is_pattern),
  "task.format_reward": _SHAPING,
  "task.length_weight": _SHAPING,
  "model.checkpoint": _ANY_TEXT,
  "model.num_layers": _at_least(1),
  "model.width": _at_least(1),
  "model.num_heads": _at_least(1),
  "model.num_kv_heads": _at_least(1),
  "model.head_dim": Key(int, lambda x: x > 0 and x % 2 == 0, "a positive even number"),
  "model.mlp_width": _at_least(1),
  "model.rope_theta": _POSITIVE,
  "model.norm_eps": _POSITIVE,
  "model.compute_dtype": _one_of("float32", "bfloat16"),
  "model.lora_rank": _at_least(0),
  "model.lora_alpha": _POSITIVE,
  "model.lora_targets": _text(
    "some of " + ",".join(LORA_TARGETS), lambda x: set(x.split(",")) <= set(LORA_TARGETS)
  ),
  "mesh.data": _at_least(1),
  "mesh.fsdp": _at_least(1),
  "mesh.tensor": _at_least(1),
  "mesh.expert": _at_least(1),
  "warm_start.steps": _at_least(0),
  "warm_start.stop_loss": _from(0),
  "warm_start.rows": _at_least(1),
  "warm_start.learning_rate": _POSITIVE,
  "lag.mode": _one_of(*lag.MODES),
  "lag.max_lag": _at_least(0),
  "lag.schedule": _text("a file, or '' for none"),
  "learner.steps": _at_least(0),
  "learner.prompts_per_step": _at_least(1),
  "learner.max_refills": _at_least(0),
  "learner.group_size": _at_least(2),  # every advantage compares with the group
  "learner.minibatches": _at_least(1),
  "learner.epochs": _at_least(1),
  "learner.microbatches": _at_least(1),
  "learner.layout": _one_of(*packing.LAYOUTS),
  "learner.row_tokens": _at_least(0),
  "learner.buckets": _between(1, 16),
  "learner.logprob_chunk": _at_least(0),
  "learner.remat": _one_of("none", "dots", "full"),
  "learner.learning_rate": _POSITIVE,
  "learner.warmup_steps": _at_least(0),
  "learner.schedule": _one_of("constant", "cosine"),
  "learner.adam_b1": _FRACTION,
  "learner.adam_b2": _FRACTION,
  "learner.adam_eps": _POSITIVE,
  "learner.weight_decay": _from(0),
  "learner.max_grad_norm": _POSITIVE,
  "learner.audit_every": _at_least(0),
  "learner.mismatch_alarm": _from(0),
  "sampler.slots": _at_least(1),
  "sampler.data": _at_least(1),
  "sampler.tensor": _at_least(1),
  "sampler.temperature": _POSITIVE,
  "sampler.top_k": _at_least(0),
  "sampler.top_p": Key(float, lambda x: 0 < x <= 1, "in (0, 1]"),
  "sampler.min_p": _FRACTION,
  "sampler.stop": _text("a JSON list of texts, or '' for none", _is_list_of_texts),
  "sampler.int8_weights": _SWITCH,
  "sampler.weight_update": _one_of("between_groups", "in_flight"),
  "sampler.cache_after_update": _one_of("keep", "recompute"),
  "sampler.page_tokens": _at_least(1),
  "sampler.cache_tokens": _at_least(0),
  "sampler.prefill_tokens": _at_least(1),
  "sampler.decode_steps": _at_least(1),
  "sampler.grace_seconds": _from(0),
  "evaluation.every": _at_least(0),
  "evaluation.problems": _at_least(1),
  "evaluation.samples": _at_least(1),
  "checkpoint.every": _at_least(1),
  "checkpoint.keep": _at_least(1),
  "transport.lease_seconds": _POSITIVE,
  "transport.heartbeat_seconds": _POSITIVE,
  "transport.reissue_seconds": _POSITIVE,
  "transport.reconnect_seconds": _POSITIVE,
  "transport.max_samplers": _at_least(1),
  "transport.max_message_mb": _between(2, bounds.MAX_MESSAGE_MB),
  "transport.weights_dtype": _one_of("float32", "bfloat16"),
  "transport.delta_bases": _at_least(0),
  "learner.offload_optimizer": _SWITCH,
  "model.tied_embeddings": _SWITCH,
  "task.chat": _SWITCH,
  "task.judge_unfinished": _SWITCH,
}
