"""Every key there is, with its unit and reason. Cards copy this and change what differs.

Override any key on the command line: --config.objective.beta=0.2
"""

from ml_collections import config_dict

from configs import models
from offpolicy_rl import config as config_lib


def get_config() -> config_dict.ConfigDict:
  """The complete, locked configuration."""
  c = config_dict.ConfigDict()
  c.seed = 0  # prompts order, initial parameters, every sampled token

  # What is asked, and who judges.
  c.task = config_dict.ConfigDict()
  # A task of tasks/catalog.py, gsm8k, math, jsonl, reasoning_gym:NAME, mixture, or your own
  # module:function.
  c.task.name = "sums"
  # mixture: JSON object, task name -> rate, or -> {"rate": 0.3, and keys of this section that
  # differ for it}, e.g. '{"gsm8k": 0.7, "jsonl": {"rate": 0.3, "train_file": "my.jsonl"}}'.
  # The name jsonl:LABEL tells several files apart.
  c.task.mixture = ""
  # gsm8k: directory with train.jsonl and test.jsonl, or one that `tfds build gsm8k` prepared;
  # "" = the environment's GSM8K_DIR, or TFDS's own. math: with train.jsonl and test.jsonl.
  c.task.data_dir = ""
  c.task.train_file = ""  # jsonl: one object per line
  c.task.heldout_file = ""  # jsonl; "" = one question in eight of train_file, by its hash
  c.task.question_column = "question"  # jsonl
  c.task.answer_column = "answer"  # jsonl
  c.task.demonstration_column = ""  # jsonl: what a warm start imitates; "" = the answer
  # gsm8k, math, jsonl: share of a file's rows that may be left out because they can't be used (a
  # missing answer, a broken line); with more a run does not start. `offpolicy-rl check` lists them.
  c.task.max_bad_rows = 0.01
  c.task.size = 10_000  # reasoning_gym:NAME: problems drawn, the held-out eighth included
  c.task.options = ""  # reasoning_gym:NAME: its options as a JSON object, e.g. '{"min_terms": 2}'
  # How questions are put to a published model (model.checkpoint); fresh models see them plain.
  c.task.prompt = "{question}"
  c.task.chat = True  # as the first message of a chat, in the checkpoint's template
  c.task.system_prompt = ""  # a system message before it; "" = none
  # Variables of the chat template as a JSON object, e.g. '{"enable_thinking": false}'.
  c.task.chat_arguments = ""
  # The day, YYYY-MM-DD, that templates see which write it into prompts (Llama 3). "" = the day on
  # which a run or an evaluation begins, which is written here then: its prompts stay what they are.
  c.task.chat_date = ""
  c.task.max_prompt_tokens = 8  # longer prompts are counted and left out
  c.task.max_completion_tokens = 4  # the end-of-sequence token included
  # exact | numeric | math_verify | reasoning_gym | module:function; "" = the task's own.
  c.task.verifier = ""
  # A completion that was cut, or ends within a thought (<think> without </think>, the prompt's
  # included), earns nothing, in training, evaluation and votes. True = it is judged all the same.
  c.task.judge_unfinished = False
  c.task.verifier_processes = 1  # per sampler
  c.task.verifier_seconds = 10.0  # time limit of one completion, the verifier's imports aside
  # Address space a verifier may take beyond its imports, in MiB; 0 = no limit. Linux only.
  c.task.verifier_memory_mb = 4096
  # zero | mean (of the group's other rewards): what a completion is worth in training when its
  # verifier failed. Failures are counted either way; in evaluation they are wrong.
  c.task.failed_reward = "zero"
  # Training only, beside the verdict (tasks/shaping.py). Overlong completions: see
  # objective.overlong_cache.
  c.task.format_pattern = ""  # regular expression, searched in the completion; . matches newlines
  c.task.format_reward = 0.0  # added where it is found
  c.task.length_weight = 0.0  # times Kimi's length reward in [-0.5, 0.5]: shorter is better

  # The policy's architecture (configs/models.py has presets).
  c.model = models.preset("tiny")
  # Directory of a published checkpoint (offpolicy-rl import): its architecture, weights and
  # tokenizer replace the keys above. "" = fresh weights and the task's own vocabulary.
  c.model.checkpoint = ""
  # float32 | bfloat16: of weights, activations and cache while computing, in learner and samplers.
  # The learner's own weights, its optimizer, losses and log-probabilities stay in float32.
  c.model.compute_dtype = "float32"
  # Low-rank adapters (LoRA, model/lora.py) are trained instead of the weights; 0 = the weights.
  # A warm start before them trains the weights.
  c.model.lora_rank = 0
  c.model.lora_alpha = 16.0  # updates are multiplied by alpha / rank
  c.model.lora_targets = "w_q,w_k,w_v,w_o,w_gate,w_up,w_down"  # matrices of every layer

  # Devices per mesh axis of the learner. Rows are split over data x fsdp x expert, weights over
  # fsdp x tensor, those of experts over expert, too.
  c.mesh = config_dict.ConfigDict()
  c.mesh.data = 1
  c.mesh.fsdp = 1
  c.mesh.tensor = 1
  c.mesh.expert = 1

  # Supervised phase on the task's demonstrations before version 0; 0 steps = none.
  c.warm_start = config_dict.ConfigDict()
  c.warm_start.steps = 0  # at most
  c.warm_start.stop_loss = (
    0.0  # ends earlier once the loss (nats per token, smoothed) is below this
  )
  c.warm_start.rows = 128  # demonstrations per step
  c.warm_start.learning_rate = 1e-3

  # The loss: a preset of losses/presets.py. Every field of losses/choices.py can be replaced, e.g.
  # --config.objective.beta=0.2; None keeps the preset's value.
  c.objective = config_lib.objective_section()
  c.objective.name = "beta_shift"

  # How far the samplers may run behind (replay/lag.py).
  c.lag = config_dict.ConfigDict()
  c.lag.mode = "async"  # async | fixed | periodic | replay
  c.lag.max_lag = 8  # async: bound; fixed: the lag; periodic: the period; in versions
  c.lag.schedule = ""  # replay: the lag_schedule.jsonl to follow; --replay=FILE sets it

  # The learner's updates.
  c.learner = config_dict.ConfigDict()
  c.learner.steps = 100
  c.learner.prompts_per_step = 16  # groups per step
  c.learner.group_size = 8  # completions per prompt, G
  # A group whose completions all have the same reward teaches nothing: it is replaced by a group
  # of another prompt, each at most so many times; 0 = it is used.
  c.learner.max_refills = 0
  # Updates per step: each pass over the batch makes one with each of so many equal parts of it.
  # More than one gives `tis`, `minirl` and their kin a proximal policy of their own: the policy at
  # the beginning of the step. A version is what a step makes, however many updates it has.
  c.learner.minibatches = 1
  c.learner.epochs = 1  # passes over the batch
  c.learner.microbatches = 1  # an update's rows are worked off in so many parts; same gradient
  # How completions lie in the rows that the model sees (replay/packing.py); same results:
  # padded: one per row | packed: as many as fit | shared: one copy of the prompt for its group, too
  c.learner.layout = "padded"
  c.learner.row_tokens = 0  # columns of a row; 0 = one completion, or one group where shared
  # Rows and columns are rounded up to so many-th parts of the largest there can be: more is less
  # padding, and more compilations at the beginning.
  c.learner.buckets = 1
  # Scored tokens per row whose logits exist at a time; 0 = all. For large vocabularies.
  c.learner.logprob_chunk = 0
  # What the backward pass computes a second time instead of keeping it: none | dots (all but
  # matrix products) | full (everything inside a layer).
  c.learner.remat = "none"
  c.learner.offload_optimizer = False  # Adam's moments rest in the host's memory between updates
  c.learner.learning_rate = 3e-4
  c.learner.warmup_steps = 0  # linear from 0, in steps
  c.learner.schedule = "constant"  # constant | cosine (to 0 at the last step)
  c.learner.adam_b1 = 0.9
  c.learner.adam_b2 = 0.99
  c.learner.adam_eps = 1e-8
  c.learner.weight_decay = 0.0
  c.learner.max_grad_norm = 1.0  # global norm
  # Steps between comparisons of sampler and learner logprobs, and between looks at the routers of
  # a mixture of experts; 0 = never.
  c.learner.audit_every = 10
  c.learner.mismatch_alarm = 0.02  # mean nats per token, above which people are told; 0 = never

  # Each sampler.
  c.sampler = config_dict.ConfigDict()
  c.sampler.slots = 128  # completions decoded side by side by an engine; at least one group
  # Engines of a sampler, and devices per engine, over which heads and MLPs are split.
  c.sampler.data = 1
  c.sampler.tensor = 1
  c.sampler.temperature = 1.0
  # Unlikely tokens can be left out (sampler/sampling.py). The recorded log-probabilities are then
  # those of what is left, the learner's are not.
  c.sampler.top_k = 0  # 0 = all
  c.sampler.top_p = 1.0
  c.sampler.min_p = 0.0
  # What ends a completion besides the end-of-sequence token: JSON list of special tokens of the
  # checkpoint and of other texts, e.g. '["<|endoftext|>", "\\n\\n"]'; "" = nothing.
  c.sampler.stop = ""
  # The matrices of the layers as 8-bit integers with scales (model/int8.py): a quarter of their
  # memory, and a policy that differs a little from the learner's; mismatch/max says how much.
  c.sampler.int8_weights = False
  # between_groups: completions that run finish before newer weights are taken | in_flight: they go
  # on with them, each token tagged with the version that sampled it (lag.mode async only).
  c.sampler.weight_update = "between_groups"
  # in_flight: keep | recompute the keys and values of what was sampled with older weights.
  c.sampler.cache_after_update = "keep"
  # The cache (model/paging.py): pages of so many tokens; completions share those of their prompt.
  c.sampler.page_tokens = 32
  # Tokens in the cache; 0 = enough for all slots at full length. With less, completions that find
  # no page wait, or begin again, which changes nothing but time.
  c.sampler.cache_tokens = 0
  # Prefilled at a time, between the decoding of others: of one long prompt or several short ones.
  c.sampler.prefill_tokens = 128
  c.sampler.decode_steps = 8  # tokens per slot before finished completions make room for others
  c.sampler.grace_seconds = 20.0  # to finish groups after SIGTERM; then their tickets go back

  # Held-out evaluation, done by the samplers.
  c.evaluation = config_dict.ConfigDict()
  c.evaluation.every = 50  # steps; 0 = only before and after
  c.evaluation.problems = 64
  c.evaluation.samples = 8  # per problem, the k of pass@k

  c.checkpoint = config_dict.ConfigDict()
  c.checkpoint.every = 50  # steps
  c.checkpoint.keep = 2  # newest ones

  c.transport = config_dict.ConfigDict()
  c.transport.lease_seconds = (
    20.0  # a ticket goes back to the queue after so long without heartbeat
  )
  c.transport.heartbeat_seconds = 2.0
  # A ticket whose tokens have not grown for so long is given to a second sampler, too.
  c.transport.reissue_seconds = 300.0
  c.transport.reconnect_seconds = 60.0  # how long a sampler looks for a lost learner
  c.transport.max_samplers = 16
  c.transport.max_message_mb = 64  # either way; a prompt's answer data has to fit
  # float32 | bfloat16: what samplers get. bfloat16 halves a full transfer and makes deltas small,
  # but they then sample from rounded weights; the audit's logprob mismatch shows by how much.
  c.transport.weights_dtype = "float32"
  # Versions that the learner's host keeps only because samplers hold them: bases of deltas.
  c.transport.delta_bases = 4
  return c.lock()
