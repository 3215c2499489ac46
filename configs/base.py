"""Every key of a configuration: default, meaning with unit and reason, and what it may be.

A card copies `get_config()` and changes what differs. Any key is a flag:
--config.learner.group_size=16. The same as a list: offpolicy-rl keys [PATTERN].
"""

from offpolicy_rl.config.keys import (
  chosen_from,
  day,
  integer,
  json_object,
  json_texts,
  locked_config,
  number,
  objective_keys,
  one_of,
  regular_expression,
  switch,
  text,
)
from offpolicy_rl.model import names
from offpolicy_rl.replay import lag, packing
from offpolicy_rl.tasks import shaping
from offpolicy_rl.transport import bounds

DTYPES = ("float32", "bfloat16")

# Heading -> keys. A heading stands above its keys wherever they are listed.
GROUPS = {
  "The run": {
    "seed": integer(
      0, "order of prompts, initial parameters, every sampled token", at_least=0, below=2**31
    )
  },
  "The task: prompts and rewards": {
    "task.name": text(
      "sums",
      "a task of tasks/catalog.py, gsm8k, math, jsonl, reasoning_gym:NAME, mixture, or your own "
      "module:function",
    ),
    "task.mixture": text(
      "",
      "mixture: a JSON object, task name -> its rate, or -> its rate and keys of this section that "
      'differ for it, e.g. {"gsm8k": 0.7, "jsonl": {"rate": 0.3, "train_file": "my.jsonl"}}; '
      "jsonl:LABEL tells several files apart",
    ),
    "task.data_dir": text(
      "",
      "gsm8k, math: directory with train.jsonl and test.jsonl; gsm8k: or one that `tfds build "
      "gsm8k` prepared, '' = the environment's GSM8K_DIR, or the default of TFDS",
    ),
    "task.train_file": text("", "jsonl: one object per line"),
    "task.heldout_file": text(
      "", "jsonl; '' = one question in eight of train_file, chosen by its hash"
    ),
    "task.question_column": text("question", "jsonl", "the name of a column", bool),
    "task.answer_column": text("answer", "jsonl", "the name of a column", bool),
    "task.demonstration_column": text("", "jsonl: what a warm start imitates; '' = the answer"),
    "task.max_bad_rows": number(
      0.01,
      "gsm8k, math, jsonl: share of a file's rows that may be unusable (no answer, a broken line) "
      "and are left out; a run with more does not start. `offpolicy-rl check` lists them",
      at_least=0,
      below=1,
    ),
    "task.size": integer(
      10_000, "reasoning_gym:NAME: problems drawn, the held-out eighth included", at_least=1
    ),
    "task.options": text(
      "", 'reasoning_gym:NAME: its options as a JSON object, e.g. {"min_terms": 2}'
    ),
    "task.max_prompt_tokens": integer(8, "longer prompts are left out and counted", at_least=1),
    "task.max_completion_tokens": integer(
      4, "longest completion, end-of-sequence token included", at_least=1
    ),
  },
  "The task: how questions are put to a published model (fresh ones see them plain)": {
    "task.prompt": text(
      "{question}",
      "the user's message",
      "a text with {question} in it",
      lambda prompt: "{question}" in prompt,
    ),
    "task.chat": switch(True, "the prompt is the first message of a chat, in the model's template"),
    "task.system_prompt": text("", "a system message before it; '' = none"),
    "task.chat_arguments": json_object(
      "",
      'variables of the chat template, e.g. {"enable_thinking": false}',
      without=("add_generation_prompt", "messages"),  # the prompt itself sets these
    ),
    "task.chat_date": day(
      "",
      "the date that templates see which write it into prompts (Llama 3); '' = the day on which "
      "the run or evaluation begins, recorded here so that its prompts stay the same",
    ),
  },
  "The task: verifiers": {
    "task.verifier": text(
      "", "exact, numeric, math_verify, reasoning_gym or module:function; '' = the task's default"
    ),
    "task.judge_unfinished": switch(
      False,
      "verify completions that were cut, or end within a thought (<think> without </think>, the "
      "prompt's included); False = they earn 0 in training, evaluation and votes",
    ),
    "task.verifier_processes": integer(1, "per sampler", at_least=1),
    "task.verifier_seconds": number(
      10.0, "time limit of one completion, without the verifier's imports", above=0
    ),
    "task.verifier_memory_mb": integer(
      4096,
      "address space of a verifier beyond its imports, in MiB; 0 = no limit; Linux only",
      at_least=0,
    ),
    "task.failed_reward": one_of(
      shaping.ZERO,
      (shaping.ZERO, shaping.MEAN),
      "training reward of a completion whose verifier failed: zero, or the mean of its group's "
      "other rewards. Failures are counted either way, and wrong in evaluation",
    ),
  },
  "The task: rewards added in training (tasks/shaping.py)": {
    # A larger reward would not fit beside the largest verdict in a message (transport/bounds.py).
    "task.format_pattern": regular_expression(
      "", "searched in the completion; . matches newlines; '' = none"
    ),
    "task.format_reward": number(0.0, "added where it matches", at_least=0, at_most=1_000_000),
    "task.length_weight": number(
      0.0,
      "factor of Kimi's length reward in [-0.5, 0.5]: shorter is better; for overlong completions "
      "see objective.overlong_cache",
      at_least=0,
      at_most=1_000_000,
    ),
  },
  "The model: the architecture of a fresh one": {
    "model.num_layers": integer(2, "decoder blocks", at_least=1),
    "model.width": integer(64, "residual stream", at_least=1),
    "model.num_heads": integer(8, "query heads", at_least=1),
    "model.num_kv_heads": integer(8, "key and value heads, a divisor of num_heads", at_least=1),
    "model.head_dim": integer(8, "width of a head, for rotary pairs", at_least=2, a_multiple_of=2),
    "model.mlp_width": integer(192, "hidden layer of the gated MLP", at_least=1),
    "model.rope_theta": number(
      30.0,
      "rotary base: the slowest rotation should turn visibly within a row. 30 fits rows of tens of "
      "tokens, long ones want 10,000 and more",
      above=0,
    ),
    "model.norm_eps": number(1e-6, "added to the mean square in RMSNorm", above=0),
    "model.tied_embeddings": switch(True, "the output matrix is the embedding"),
  },
  "The model": {
    "model.checkpoint": text(
      "",
      "directory of a published checkpoint (offpolicy-rl import): its architecture, weights and "
      "tokenizer replace the keys above; '' = fresh weights and the task's vocabulary",
    ),
    "model.compute_dtype": one_of(
      "float32",
      DTYPES,
      "of weights, activations and cache while computing, in learner and samplers; the learner's "
      "stored weights, optimizer, losses and log-probabilities stay float32",
    ),
    "model.lora_rank": integer(
      0,
      "rank of the adapters (model/lora.py) that are trained instead of the weights; 0 = train the "
      "weights, as a warm start always does",
      at_least=0,
    ),
    "model.lora_alpha": number(16.0, "an adapter's output is multiplied by alpha / rank", above=0),
    "model.lora_targets": chosen_from(
      ",".join(names.LORA_INPUT_AXES),
      names.LORA_INPUT_AXES,
      "matrices of each layer that get an adapter",
    ),
  },
  "The learner's mesh: devices per axis": {
    "mesh.data": integer(1, "splits rows", at_least=1),
    "mesh.fsdp": integer(1, "splits rows and weights", at_least=1),
    "mesh.tensor": integer(1, "splits weights: heads, MLPs, vocabulary", at_least=1),
    "mesh.expert": integer(1, "splits rows and experts", at_least=1),
  },
  "Warm start: supervised, on the task's demonstrations, before version 0": {
    "warm_start.steps": integer(0, "at most; 0 = none", at_least=0),
    "warm_start.stop_loss": number(
      0.0, "end once the smoothed loss is below this, in nats per token", at_least=0
    ),
    "warm_start.rows": integer(128, "demonstrations per step", at_least=1),
    "warm_start.learning_rate": number(1e-3, "Adam's step size", above=0),
  },
  "The objective: a preset of losses/presets.py; None = as in the preset": (
    objective_keys("beta_shift")
  ),
  "Lag: how far the samplers may run behind (replay/lag.py)": {
    "lag.mode": one_of(
      lag.ASYNC,
      lag.MODES,
      "async: any version within max_lag; fixed: exactly max_lag behind; periodic: the version at "
      "the start of the period; replay: the versions of a recorded run",
    ),
    "lag.max_lag": integer(
      8, "async: the bound; fixed: the lag; periodic: the period; in versions", at_least=0
    ),
    "lag.schedule": text(
      "", "replay: the lag_schedule.jsonl to follow, set by --replay=FILE", "a file, or ''"
    ),
  },
  "The learner: groups and updates": {
    "learner.steps": integer(100, "a step makes one version", at_least=0),
    "learner.prompts_per_step": integer(16, "groups per step", at_least=1),
    # Advantages compare within the group.
    "learner.group_size": integer(8, "completions per prompt, G", at_least=2),
    "learner.max_refills": integer(
      0,
      "a group whose rewards are all equal teaches nothing: it is replaced by a group of another "
      "prompt, at most so many times; 0 = it is used",
      at_least=0,
    ),
    "learner.minibatches": integer(
      1,
      "equal parts of the batch; each makes one update per epoch. With several updates per step, "
      "tis, minirl and others have a proximal policy: the one at the start of the step",
      at_least=1,
    ),
    "learner.epochs": integer(1, "passes over the batch per step", at_least=1),
    "learner.microbatches": integer(
      1,
      "parts that an update's rows are computed in, one after the other; same gradient",
      at_least=1,
    ),
  },
  "The learner: rows and memory": {
    "learner.layout": one_of(
      packing.PADDED,
      packing.LAYOUTS,
      "completions per row, same results (replay/packing.py). padded: one; packed: as many as fit; "
      "shared: packed, but a group's completions in a row have one copy of the prompt",
    ),
    "learner.row_tokens": integer(
      0, "columns of a row; 0 = one completion, or one group with layout shared", at_least=0
    ),
    "learner.buckets": integer(
      1,
      "rows and columns are rounded up to one of so many sizes: less padding, more compilations",
      at_least=1,
      at_most=16,
    ),
    "learner.logprob_chunk": integer(
      0,
      "scored tokens per row whose logits exist at once; 0 = all. For large vocabularies",
      at_least=0,
    ),
    "learner.remat": one_of(
      "none",
      names.REMAT,
      "what the backward pass computes again instead of storing it. dots: all but matrix products; "
      "full: everything inside a layer",
    ),
    "learner.offload_optimizer": switch(
      False, "Adam's moments are kept in the host's memory between updates"
    ),
  },
  "The learner: optimizer (Adam)": {
    "learner.learning_rate": number(3e-4, "Adam's step size after the warm-up", above=0),
    "learner.warmup_steps": integer(0, "in which the rate rises linearly from 0", at_least=0),
    "learner.schedule": one_of(
      "constant", ("constant", "cosine"), "cosine: down to 0 at the last step"
    ),
    "learner.adam_b1": number(0.9, "decay of the first moment", at_least=0, below=1),
    "learner.adam_b2": number(0.99, "decay of the second moment", at_least=0, below=1),
    "learner.adam_eps": number(1e-8, "added to the denominator", above=0),
    "learner.weight_decay": number(0.0, "decoupled", at_least=0),
    "learner.max_grad_norm": number(1.0, "gradients are clipped to this global norm", above=0),
  },
  "The learner: audit": {
    "learner.audit_every": integer(
      10,
      "steps between comparisons of the sampler's with the learner's logprobs, and between metrics "
      "of the routers of a mixture of experts; 0 = never",
      at_least=0,
    ),
    "learner.mismatch_alarm": number(
      0.02, "mean difference that raises an alarm, in nats per token; 0 = never", at_least=0
    ),
  },
  "Each sampler": {
    "sampler.slots": integer(
      128, "completions decoded side by side by an engine; at least one group", at_least=1
    ),
    "sampler.data": integer(1, "engines of a sampler", at_least=1),
    "sampler.tensor": integer(1, "devices per engine; they split heads and MLPs", at_least=1),
    "sampler.temperature": number(1.0, "of the softmax", above=0),
    # Recorded logprobs are those of the truncated distribution; the learner's are of the full one.
    "sampler.top_k": integer(0, "sample from the k likeliest tokens; 0 = all", at_least=0),
    "sampler.top_p": number(1.0, "sample from the likeliest with this mass", above=0, at_most=1),
    "sampler.min_p": number(
      0.0, "leave out tokens less likely than this share of the likeliest", at_least=0, below=1
    ),
    "sampler.stop": json_texts(
      "",
      "what ends a completion besides the end-of-sequence token: special tokens of the checkpoint, "
      'or other texts, e.g. ["<|endoftext|>", "\\n\\n"]',
    ),
    "sampler.int8_weights": switch(
      False,
      "the layers' matrices are 8-bit integers with scales (model/int8.py): a quarter of their "
      "memory, but a policy slightly unlike the learner's; mismatch/max shows how much",
    ),
    "sampler.weight_update": one_of(
      "between_groups",
      ("between_groups", "in_flight"),
      "when newer weights are taken. between_groups: once running completions are finished; "
      "in_flight: within them, each token tagged with its version (lag.mode async only)",
    ),
    "sampler.cache_after_update": one_of(
      "keep",
      ("keep", "recompute"),
      "in_flight: the keys and values of tokens that older weights sampled",
    ),
    "sampler.page_tokens": integer(
      32, "per page of the cache (model/paging.py); completions share prompt pages", at_least=1
    ),
    "sampler.cache_tokens": integer(
      0,
      "size of the cache; 0 = room for all slots at full length. With less, completions without a "
      "page wait or begin again, which costs time and changes nothing else",
      at_least=0,
    ),
    "sampler.prefill_tokens": integer(
      128, "prompt tokens computed at a time, between the decoding of others", at_least=1
    ),
    "sampler.decode_steps": integer(
      8, "tokens per slot before finished completions make room for others", at_least=1
    ),
    "sampler.grace_seconds": number(
      20.0, "to finish groups after SIGTERM; then their tickets go back", at_least=0
    ),
  },
  "Evaluation on held-out problems, by the samplers": {
    "evaluation.every": integer(50, "steps; 0 = only before and after the run", at_least=0),
    "evaluation.problems": integer(64, "the first so many", at_least=1),
    "evaluation.samples": integer(8, "completions per problem, the k of pass@k", at_least=1),
  },
  "Checkpoints": {
    "checkpoint.every": integer(50, "steps", at_least=1),
    "checkpoint.keep": integer(2, "the newest so many", at_least=1),
  },
  "Transport: learner and samplers": {
    "transport.lease_seconds": number(
      20.0, "without a heartbeat for so long, a sampler's tickets are handed out again", above=0
    ),
    "transport.heartbeat_seconds": number(2.0, "between heartbeats", above=0),
    "transport.reissue_seconds": number(
      300.0, "a ticket without a new token for so long goes to a second sampler, too", above=0
    ),
    "transport.reconnect_seconds": number(
      60.0, "how long a sampler looks for a lost learner", above=0
    ),
    "transport.max_samplers": integer(16, "connected at once", at_least=1),
    "transport.max_message_mb": integer(
      64,
      "MiB, either way; a prompt with its answer has to fit",
      at_least=2,
      at_most=bounds.MAX_MESSAGE_MB,
    ),
    "transport.weights_dtype": one_of(
      "float32",
      DTYPES,
      "what samplers get. bfloat16 halves a full transfer and makes deltas small, but rounds the "
      "weights that they sample from; the audit shows by how much",
    ),
    "transport.delta_bases": integer(
      4, "old versions kept by the learner as bases of deltas, while samplers hold them", at_least=0
    ),
  },
}


def get_config():
  """The complete, locked ConfigDict with every default."""
  return locked_config(GROUPS)
