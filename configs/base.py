"""Every key of a configuration: default, meaning with unit and reason, and what it may be.

A card copies `get_config()` and changes what differs. Any key is a flag:
--config.learner.group_size=16. The same as a list: offpolicy-rl keys [PATTERN].
"""

from ml_collections import config_dict

from offpolicy_rl import types
from offpolicy_rl.config.keys import (
  chosen_from,
  day,
  integer,
  json_object,
  json_objects,
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
from offpolicy_rl.tasks import judge, shaping, thoughts
from offpolicy_rl.transport import bounds

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
DTYPES = ("float32", "bfloat16")
WEIGHT_UPDATES = (types.BETWEEN_GROUPS, types.IN_FLIGHT)

# Heading -> keys. A heading stands above its keys wherever they are listed.
GROUPS = {
  "The run": {
    "seed": integer(0, at_least=0, below=2**31).means(
      "prompt order, initial parameters, sampled tokens"
    ),
    "tracker": chosen_from("tensorboard", TRACKERS).means(
      "who gets the metrics besides metrics.jsonl, e.g. tensorboard,wandb"
    ),
    "trace_every": integer(20, at_least=0).means(
      "steps between those of which RUN/trace.json has spans, of 8 tickets at most; 0 = never"
    ),
  },
  "The task: prompts and rewards": {
    "task.name": text("sums").means(
      "a task of tasks/catalog.py, gsm8k, math, jsonl, reasoning_gym:NAME, seqio:NAME (a Task or "
      "Mixture), tfds:NAME or tfds:NAME:VERSION, openenv:URL, textarena:NAME, "
      "verifiers:NAME, mixture, or your own module:function"
    ),
    "task.module": text("").means(
      "seqio: the module that registers it, imported first; by samplers only if they judge by the "
      "task's metric"
    ),
    "task.train_split": text("train", "the name of a split", bool).means("seqio, tfds"),
    "task.heldout_split": text("").means(
      "seqio, tfds; '' = the first of heldout, validation, dev and test, or else an eighth of "
      "task.train_split, by the questions' hash"
    ),
    "task.max_listed": integer(100_000, at_least=1).means(
      "seqio, tfds, jsonl: a split with more problems is streamed: shuffled within blocks of 2,048 "
      "rows, repeats not left out; held out are those of the first block"
    ),
    "task.mixture": text("").means(
      "mixture: a JSON object, task name -> its rate, or -> its rate and keys of this section that "
      'differ for it, e.g. {"gsm8k": 0.7, "jsonl": {"rate": 0.3, "train_file": "my.jsonl"}}; '
      'jsonl:LABEL tells several files apart. "environment" among the keys of a member is what '
      "environment.name is for a single task"
    ),
    "task.data_dir": text("").means(
      "gsm8k, math: directory with train.jsonl and test.jsonl; gsm8k, tfds: or one that `tfds "
      "build` prepared, '' = the environment's TFDS_DATA_DIR (gsm8k: GSM8K_DIR), or TFDS's default"
    ),
    "task.train_file": text("").means(
      "jsonl: one object per line; or Parquet, a folder that `datasets` saved, or a pattern such "
      "as data/train-*.parquet"
    ),
    "task.heldout_file": text("").means(
      "jsonl; '' = an eighth of train_file, by the questions' hash"
    ),
    "task.question_column": text("question", "the name of a column", bool).means(
      "jsonl, tfds; a text, or a chat: a list of {role, content} that ends with the user's"
    ),
    "task.answer_column": text("answer", "the name of a column", bool).means("jsonl, tfds"),
    "task.demonstration_column": text("").means("jsonl, tfds: for warm starts; '' = the answer"),
    "task.max_bad_rows": number(0.01, at_least=0, below=1).means(
      "gsm8k, math, jsonl, seqio, tfds: share of rows that may be unusable (no answer, a broken "
      "line) and are left out; a run with more does not start. `offpolicy-rl check` lists them"
    ),
    "task.size": integer(10_000, at_least=1).means(
      "reasoning_gym, openenv, textarena, verifiers: problems, with the held-out eighth"
    ),
    "task.options": text("").means(
      'reasoning_gym, openenv, textarena, verifiers: options as JSON, e.g. {"min_terms": 2}'
    ),
    "task.max_prompt_tokens": integer(8, at_least=1).means("longer ones are left out and counted"),
    "task.max_completion_tokens": integer(4, at_least=1).means("end-of-sequence token included"),
  },
  "The task: how questions are put to a published model (fresh ones see them plain)": {
    "task.prompt": text(
      "{question}", "a text with {question} in it", lambda prompt: "{question}" in prompt
    ).means("the user's message"),
    "task.chat": switch(True).means("the prompt begins a chat, in the model's template"),
    "task.system_prompt": text("").means("a system message before it; '' = none"),
    "task.chat_arguments": json_object("", without=("add_generation_prompt", "messages")).means(
      'variables of the chat template, e.g. {"enable_thinking": false}'
    ),
    "task.chat_date": day("").means(
      "the date that templates see which write it into prompts (Llama 3); '' = the day on which "
      "the run or evaluation begins, recorded here so that its prompts stay the same"
    ),
  },
  "The task: verifiers": {
    "task.verifier": text("").means(
      "exact, numeric, math_verify, code, reasoning_gym or module:function; '' = the task's "
      "default (of seqio: its first metric)"
    ),
    "task.judge_unfinished": switch(False).means(
      "verify completions that were cut, or end within a thought (<think> without </think>, the "
      "prompt's included); False = they earn 0 in training, evaluation and votes"
    ),
    "task.verifier_processes": integer(1, at_least=1).means("per sampler"),
    "task.verifier_seconds": number(10.0, above=0).means("for one completion, imports aside"),
    "task.verifier_memory_mb": integer(4096, at_least=0).means(
      "address space of a verifier beyond its imports, in MiB; 0 = no limit; Linux only"
    ),
    "task.failed_reward": one_of(shaping.ZERO, (shaping.ZERO, shaping.MEAN)).means(
      "training reward of a completion whose verifier failed: zero, or the mean of its group's "
      "other rewards. Failures are counted either way, and wrong in evaluation"
    ),
  },
  "The judge: a model that grades completions over HTTP (tasks/judge.py)": {
    "judge.url": text("", "http(s)://HOST[:PORT][/PATH], or ''", judge.is_url).means(
      "base URL of a server with OpenAI's interface, e.g. http://127.0.0.1:8000/v1. Samplers call "
      "it, with the key in their environment's JUDGE_API_KEY or in the file that "
      "JUDGE_API_KEY_FILE names; '' = no judge"
    ),
    "judge.model": text("").means("its name there"),
    "judge.rubric": text("").means(
      'JSON, name of a part -> {"weight": w, "criterion": text}; "verifier", with a weight only, '
      "is the verdict of task.verifier, or of the environment. The reward is the weighted mean, "
      "each part from 0 to 1"
    ),
    "judge.seconds": number(60.0, above=0).means("for one call"),
    "judge.retries": integer(4, at_least=0, at_most=20).means(
      "of a call that fails, with pauses that double up to 30 s; then the completion counts as one "
      "whose verifier failed"
    ),
    "judge.concurrency": integer(8, at_least=1, at_most=256).means("calls at once, per sampler"),
    "judge.answer_tokens": integer(512, at_least=1).means("of an answer at most"),
    "judge.max_calls": integer(0, at_least=0).means(
      "of a sampler, repetitions included; beyond it, the sampler ends and says so; 0 = no limit"
    ),
    "judge.max_tokens": integer(0, at_least=0).means(
      "of a sampler, read and written by the judge as its server counts them; 0 = no limit"
    ),
  },
  "The task: rewards added in training (tasks/shaping.py)": {
    # A larger reward would not fit beside the largest verdict in a message (transport/bounds.py).
    "task.format_pattern": regular_expression("").means(
      "in completions of one turn; . matches newlines"
    ),
    "task.format_reward": number(0.0, at_least=0, at_most=1_000_000).means("added if it is found"),
    "task.length_weight": number(0.0, at_least=0, at_most=1_000_000).means(
      "factor of Kimi's length reward in [-0.5, 0.5]: shorter is better; for overlong completions "
      "see objective.overlong_cache"
    ),
  },
  "Turns: an environment that answers the policy (environments/)": {
    "environment.name": text("").means(
      "module:class of your own, or module:function that is an agent; it takes the verifier's "
      "place. '' = the one that the task comes with, if any; none: a completion is one turn. "
      "Members of a mixture name theirs in task.mixture"
    ),
    "environment.tools": json_objects("").means(
      "JSON schemas for the chat template, of a mixture an object, environment -> schemas; '' = "
      "those of the environment, recorded here so that prompts stay the same"
    ),
    "environment.max_turns": integer(8, at_least=1).means("of the policy in an episode"),
    "environment.max_turn_tokens": integer(0, at_least=0).means(
      "of the policy in one turn; 0 = as many as fit into task.max_completion_tokens, which counts "
      "all tokens behind the prompt, the environment's included"
    ),
    "environment.history": one_of(thoughts.REFUSE, thoughts.HISTORIES).means(
      "what a turn reads of those before it: refuse = as they were read and sampled; no run starts "
      "whose chat template writes them otherwise, such as without thoughts; keep = the same, "
      "whatever the template writes; rewrite = what the template writes of the conversation as "
      "it then is; an agent may change it. What is read again counts in task.max_completion_tokens"
    ),
    "environment.episodes": integer(0, at_least=0).means(
      "begun at a time by an engine, in slots or waiting for their environments; each keeps its "
      "part of the cache. Completions of one turn in the same mixture count. 0 = twice "
      "sampler.slots"
    ),
    "environment.processes": integer(2, at_least=1).means(
      "per engine; each holds several environments and answers for one at a time"
    ),
    "environment.seconds": number(10.0, above=0).means("for one answer, imports aside"),
    "environment.memory_mb": integer(4096, at_least=0).means(
      "address space of a process beyond its imports, in MiB; 0 = no limit; Linux only"
    ),
  },
  "The model: the architecture of a fresh one": {
    "model.num_layers": integer(2, at_least=1).means("decoder blocks"),
    "model.width": integer(64, at_least=1).means("residual stream"),
    "model.num_heads": integer(8, at_least=1).means("query heads"),
    "model.num_kv_heads": integer(8, at_least=1).means("key and value heads"),
    "model.head_dim": integer(8, at_least=2, a_multiple_of=2).means("width of a head"),
    "model.mlp_width": integer(192, at_least=1).means("hidden layer of the gated MLP"),
    "model.rope_theta": number(30.0, above=0).means(
      "rotary base: the slowest rotation should turn visibly within a row. 30 fits rows of tens of "
      "tokens, long ones want 10,000 and more"
    ),
    "model.norm_eps": number(1e-6, above=0).means("added to the mean square in RMSNorm"),
    "model.tied_embeddings": switch(True).means("the output matrix is the embedding"),
  },
  "The model": {
    "model.checkpoint": text("").means(
      "directory of a published checkpoint (offpolicy-rl import): its architecture, weights and "
      "tokenizer replace the keys above; '' = fresh weights and the task's vocabulary"
    ),
    "model.compute_dtype": one_of("float32", DTYPES).means(
      "of weights, activations and cache while computing, in learner and samplers; the learner's "
      "stored weights, optimizer, losses and log-probabilities stay float32"
    ),
    "model.lora_rank": integer(0, at_least=0).means(
      "rank of the adapters (model/lora.py) that are trained instead of the weights; 0 = train the "
      "weights, as a warm start always does"
    ),
    "model.lora_alpha": number(16.0, above=0).means("adapters are multiplied by alpha / rank"),
    "model.lora_targets": chosen_from(",".join(names.LORA_INPUT_AXES), names.LORA_INPUT_AXES).means(
      "matrices of each layer that get an adapter"
    ),
  },
  "The learner's mesh: devices per axis": {
    "mesh.data": integer(1, at_least=1).means("splits rows"),
    "mesh.fsdp": integer(1, at_least=1).means("splits rows and weights"),
    "mesh.tensor": integer(1, at_least=1).means("splits weights: heads, MLPs, vocabulary"),
    "mesh.expert": integer(1, at_least=1).means("splits rows and experts"),
  },
  "Warm start: supervised, on the task's demonstrations, before version 0": {
    "warm_start.steps": integer(0, at_least=0).means("at most; 0 = none"),
    "warm_start.stop_loss": number(0.0, at_least=0).means("end below this, in nats per token"),
    "warm_start.rows": integer(128, at_least=1).means("demonstrations per step"),
    "warm_start.learning_rate": number(1e-3, above=0).means("Adam's step size"),
  },
  "The objective: a preset of losses/presets.py; None = as in the preset": (
    objective_keys("beta_shift")
  ),
  "The teacher, for objectives that distil it (learner/teacher.py)": {
    "teacher.checkpoint": text("").means(
      "a published checkpoint, or the directory of a run that has ended, whose newest checkpoint "
      "is taken: any architecture, the policy's vocabulary. With an objective that does not need "
      "it only its distance is logged; '' = none"
    )
  },
  "Lag: how far the samplers may run behind (replay/lag.py)": {
    "lag.mode": one_of(lag.ASYNC, lag.MODES).means(
      "async: any version within max_lag; fixed: exactly max_lag behind; periodic: the version at "
      "the start of the period; replay: the versions of a recorded run"
    ),
    "lag.max_lag": integer(8, at_least=0).means("in versions; the period in mode periodic"),
    "lag.kept_versions": integer(0, at_least=0).means(
      "mode fixed: 0 = the weights of max_lag versions are kept, in memory and in checkpoints, so "
      "that groups lost with the learner's disk can be sampled again; n = those that samplers are "
      "not done with, and the learner waits where these are more than n"
    ),
    "lag.schedule": text("", "a file, or ''").means("for mode replay; --replay=FILE sets it"),
  },
  "The learner: groups and updates": {
    "learner.steps": integer(100, at_least=0).means("a step makes one version"),
    "learner.prompts_per_step": integer(16, at_least=1).means("groups per step"),
    # Advantages compare within the group.
    "learner.group_size": integer(8, at_least=2).means("completions per prompt, G"),
    "learner.max_refills": integer(0, at_least=0).means(
      "a group whose rewards are all equal teaches nothing: it is replaced by a group of another "
      "prompt, at most so many times; 0 = it is used"
    ),
    "learner.minibatches": integer(1, at_least=1).means(
      "equal parts of the batch; each makes one update per epoch. With several updates per step, "
      "tis, minirl and others have a proximal policy: the one at the start of the step"
    ),
    "learner.epochs": integer(1, at_least=1).means("passes over the batch per step"),
    "learner.microbatches": integer(1, at_least=1).means(
      "parts that an update's rows are computed in, one after the other; same gradient"
    ),
  },
  "The learner: rows and memory": {
    "learner.layout": one_of(packing.PADDED, packing.LAYOUTS).means(
      "completions per row, same results (replay/packing.py). padded: one; packed: as many as fit; "
      "shared: packed, but a group's completions in a row have one copy of the prompt"
    ),
    "learner.row_tokens": integer(0, at_least=0).means(
      "columns of a row; 0 = one completion, or one group with layout shared"
    ),
    "learner.buckets": integer(1, at_least=1, at_most=16).means(
      "rows and columns are rounded up to one of so many sizes: less padding, more compilations"
    ),
    "learner.logprob_chunk": integer(0, at_least=0).means(
      "scored tokens per row whose logits exist at once; 0 = all. For large vocabularies"
    ),
    "learner.remat": one_of("none", names.REMAT).means(
      "what the backward pass computes again instead of storing it. dots: all but matrix products; "
      "full: everything inside a layer"
    ),
    "learner.offload_optimizer": switch(False).means("Adam's moments rest in the host's memory"),
  },
  "The learner: optimizer (Adam)": {
    "learner.learning_rate": number(3e-4, above=0).means("Adam's step size after the warm-up"),
    "learner.warmup_steps": integer(0, at_least=0).means(
      "in which the rate rises linearly; the first step has rate 0"
    ),
    "learner.schedule": one_of("constant", ("constant", "cosine")).means("cosine: to 0 at the end"),
    "learner.adam_b1": number(0.9, at_least=0, below=1).means("decay of the first moment"),
    "learner.adam_b2": number(0.99, at_least=0, below=1).means("decay of the second moment"),
    "learner.adam_eps": number(1e-8, above=0).means("added to the denominator"),
    "learner.weight_decay": number(0.0, at_least=0).means("decoupled"),
    "learner.max_grad_norm": number(1.0, above=0).means("global norm to clip gradients to"),
    "learner.ess_target": number(0.0, at_least=0, at_most=1).means(
      "an update is multiplied by sqrt(min(1, e / this)), e = effective sample size of the ratios "
      "of completions to the sampler, over their number (VCPO has 1); 0 = never"
    ),
  },
  "The learner: audit": {
    "learner.audit_every": integer(10, at_least=0).means(
      "steps between comparisons of the sampler's with the learner's logprobs, and between metrics "
      "of the routers of a mixture of experts; 0 = never"
    ),
    "learner.mismatch_alarm": number(0.02, at_least=0).means(
      "mean difference that raises an alarm, in nats per token; 0 = never"
    ),
  },
  "Each sampler": {
    "sampler.slots": integer(128, at_least=1).means("completions decoded at once by an engine"),
    "sampler.data": integer(1, at_least=1).means("engines of a sampler"),
    "sampler.tensor": integer(1, at_least=1).means("devices per engine; they split heads and MLPs"),
    "sampler.temperature": number(1.0, above=0).means("of the softmax"),
    # Recorded logprobs are those of the truncated distribution; the learner's are of the full one.
    "sampler.top_k": integer(0, at_least=0).means("so many of the likeliest tokens; 0 = all"),
    "sampler.top_p": number(1.0, above=0, at_most=1).means("likeliest tokens of this mass"),
    "sampler.min_p": number(0.0, at_least=0, below=1).means(
      "no token below this share of the likeliest"
    ),
    "sampler.top_logprobs": integer(0, at_least=0, at_most=bounds.MAX_CANDIDATES).means(
      "likeliest tokens whose log-probabilities are recorded with every sampled one of training, "
      "8 bytes each, for objective.fn=score_centering; 0 = none"
    ),
    "sampler.stop": json_texts("").means(
      "what ends a completion besides the end-of-sequence token: special tokens of the checkpoint, "
      'or other texts, e.g. ["<|endoftext|>", "\\n\\n"]'
    ),
    "sampler.int8_weights": switch(False).means(
      "the layers' matrices are 8-bit integers with scales (model/int8.py): a quarter of their "
      "memory, but a policy slightly unlike the learner's; mismatch/max shows how much"
    ),
    "sampler.weight_update": one_of(types.BETWEEN_GROUPS, WEIGHT_UPDATES).means(
      "when newer weights are taken. between_groups: once running completions are finished; "
      "in_flight: within them, each token tagged with its version (lag.mode async only)"
    ),
    "sampler.cache_after_update": one_of("keep", ("keep", "recompute")).means(
      "in_flight: the keys and values of tokens that older weights sampled"
    ),
    "sampler.page_tokens": integer(32, at_least=1).means(
      "per page of the cache (model/paging.py); completions share prompt pages"
    ),
    "sampler.cache_tokens": integer(0, at_least=0).means(
      "size of the cache; 0 = room for all slots at full length. With less, completions without a "
      "page wait or begin again, which costs time and changes nothing else"
    ),
    "sampler.prefill_tokens": integer(128, at_least=1).means(
      "prompt tokens computed at a time, between the decoding of others"
    ),
    "sampler.decode_steps": integer(8, at_least=1).means(
      "tokens before finished slots are refilled"
    ),
    "sampler.grace_seconds": number(20.0, at_least=0).means("to finish groups after SIGTERM"),
  },
  "Evaluation on held-out problems, by the samplers": {
    "evaluation.every": integer(50, at_least=0).means("steps; 0 = only before and after the run"),
    "evaluation.problems": integer(64, at_least=1).means("the first so many"),
    "evaluation.samples": integer(8, at_least=1).means("completions per problem, the k of pass@k"),
  },
  "Checkpoints": {
    "checkpoint.every": integer(50, at_least=1).means("steps"),
    "checkpoint.keep": integer(2, at_least=1).means("the newest so many"),
  },
  "Transport: learner and samplers": {
    "transport.lease_seconds": number(20.0, above=0).means(
      "without a heartbeat for so long, a sampler's tickets are handed out again"
    ),
    "transport.heartbeat_seconds": number(2.0, above=0).means("between heartbeats"),
    "transport.reissue_seconds": number(300.0, above=0).means(
      "a ticket without a new token for so long goes to a second sampler, too"
    ),
    "transport.reconnect_seconds": number(60.0, above=0).means("to look for a lost learner"),
    "transport.max_samplers": integer(16, at_least=1).means("connected at once"),
    "transport.max_message_mb": integer(64, at_least=2, at_most=bounds.MAX_MESSAGE_MB).means(
      "MiB, either way; a prompt with its answer has to fit"
    ),
    "transport.weights_dtype": one_of("float32", DTYPES).means(
      "what samplers get. bfloat16 halves a full transfer and makes deltas small, but rounds the "
      "weights that they sample from; the audit shows by how much"
    ),
    "transport.delta_bases": integer(4, at_least=0).means(
      "old versions kept by the learner as bases of deltas, while samplers hold them"
    ),
  },
}


def get_config() -> config_dict.ConfigDict:
  """The complete, locked ConfigDict with every default."""
  return locked_config(GROUPS)
