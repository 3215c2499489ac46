"""The data that travels: ticket -> trajectory -> group -> batch.

A *version* is the number of optimizer updates that made the parameters. Version 0 is the initial
policy of reinforcement learning; `RAW_VERSION` names the one before the supervised warm start,
which is only ever evaluated. Where adapters are trained, versions from 0 on are adapters, and
`BASE_VERSION` is the frozen model they belong to.

Letters of dimensions, the same in the whole package. `x_BxTxD` is an array [B, T, D].

    A  parts of a batch (micro-batches)         N  completions
    B  rows of tokens in one forward pass       P  tokens of a prompt
    C  channels of a head                       Q  scored tokens of a row
    D  width of the model                       R  rotations of a head, C / 2
    E  experts                                  S  tokens attended to, or of a page of the cache
    F  width of an MLP or an expert             T  tokens of a row
    G  completions of a group                   U  tokens of all rows, B * T
    H  query heads                              V  vocabulary
    I  candidates of a token                    W  experts of a token
    J  query heads of a key head, H / K         X  keys of a block of pages
    K  key and value heads                      Y  pages of the cache
    L  layers                                   Z  pages of a row
    M  tokens of a completion
"""

import dataclasses
import enum
from typing import Any, NamedTuple

import numpy as np

TRAIN, EVAL = "train", "eval"
BETWEEN_GROUPS, IN_FLIGHT = "between_groups", "in_flight"  # when samplers take newer weights
RAW_VERSION = -1
BASE_VERSION = -3
# Padding in version arrays, and what the policy did not write; "I hold no weights yet" in a pull.
NO_VERSION = -2
BY_POLICY = -1  # in `Replies`
# No draw from a float32 softmax has less than about -120 (the smallest exponential noise); and the
# square of the sum of 100,000 of these is still a float32. Less likely candidates count as this.
MIN_LOGPROB = -1e4
# In a stream of prompts: further than any run goes, so that spare prompts can begin here; group
# indices are uint32.
FIRST_SPARE = 1 << 31
MAX_VERDICT = 1e6  # size of a verifier's verdict; squares and sums of these stay within float32
_AS_REWARD: Any = None  # in place of a number
# How an episode of several turns ends: its environment says so; the policy has had its turns, or
# its tokens; the environment ran out of time; it crashed, ran out of memory or gave no valid turn.
EPISODE_ENDS = ("done", "turns", "tokens", "time", "failed")
DONE, TURN_LIMIT, TOKEN_LIMIT, TIME_LIMIT, FAILED = EPISODE_ENDS
WITHOUT_ANSWER = (TIME_LIMIT, FAILED)  # ends that are no fault of the policy


class Rewind(NamedTuple):
  """Where the context of an episode goes back, as its history is written otherwise from there on.

  Tokens from `at` on do not see the tokens from `to` up to `at`, and stand in their positions.
  """

  at: int  # index among the tokens of the episode behind its prompt, written by the environment
  to: int  # smaller; a token that was still seen


class Replies(NamedTuple):
  """The words of an environment in an episode of a recorded run, for a replay to say again."""

  tokens: np.ndarray  # int32 [M], of the whole episode; BY_POLICY = the policy sampled it
  rewards: tuple[float, ...]  # per turn of the policy
  ended: str  # one of EPISODE_ENDS
  rewinds: tuple[Rewind, ...] = ()


@dataclasses.dataclass(frozen=True)
class Ticket:
  """Permission to sample one group: the prompt, how often, and with which versions.

  The learner makes it, a sampler leases it and answers with a `Group` of the same id.
  """

  ticket_id: str  # unique within a run, e.g. "train/12/3"; readable in logs
  kind: str  # TRAIN or EVAL
  step: int  # TRAIN: the step that will use it; EVAL: the step that requested it
  group_index: int  # position in the stream of prompts; seeds the sampling keys
  prompt_tokens: np.ndarray  # int32 [P]
  answer: str  # JSON answer data, understood by the task's verifier or environment
  min_version: int  # inclusive
  max_version: int  # inclusive
  num_completions: int  # G
  temperature: float  # 0 = greedy
  environment: str = ""  # "module:class" that plays it; "" = its completions have one turn
  replies: tuple[Replies, ...] = ()  # per completion; () = its environments are played


class Candidates(NamedTuple):
  """The I likeliest tokens wherever a token was sampled, that one among them or not.

  Likeliest first; of equally likely ones, the smaller id first.
  """

  tokens: Any  # int32 [..., I]
  logprobs: Any  # float32 [..., I], of the same distribution as the sampled token's


class Seconds(NamedTuple):
  """Where the time of an episode went, prefilling of its prompt excluded."""

  world: float  # its environment had to answer
  queue: float  # it waited for a slot, prefilling of replies included
  model: float  # in a slot


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """One completion, as it was sampled and scored.

  That of an episode holds all its turns, the policy's and those of its environment in between. It
  begins with the environment's if that said something first, and ends with the policy's.
  """

  tokens: np.ndarray  # int32 [M], the end-of-sequence token included when it was emitted
  logprobs: np.ndarray  # float32 [M], log p of the distribution really sampled from
  versions: np.ndarray  # int32 [M], that sampled each token; NO_VERSION = the environment wrote it
  finished: bool  # False = cut at the length limit
  reward: float = float("nan")  # what training uses: the verdict plus shaping
  verdict: float = _AS_REWARD  # the verifier's; left out = the same as the reward
  candidates: Candidates | None = None  # [M, I]; None = not recorded
  turn_rewards: tuple[float, ...] = ()  # of an episode, per turn of the policy
  ended: str = ""  # one of EPISODE_ENDS; "" = not an episode
  seconds: Seconds | None = None  # of an episode; None = unknown
  parts: tuple[float, ...] = ()  # scores of the parts of a rubric; () = no judge, or it failed
  rewinds: tuple[Rewind, ...] = ()  # of an episode, in order

  def __post_init__(self) -> None:
    if self.verdict is _AS_REWARD:
      object.__setattr__(self, "verdict", self.reward)

  @property
  def sampled(self) -> np.ndarray:
    """bool [M], False = the environment wrote it: no logprob (0 instead), not in the loss."""
    return self.versions != NO_VERSION

  def last_context(self) -> np.ndarray:
    """The tokens without those that were out of sight at the end, int32."""
    seen = np.ones(self.tokens.size, bool)
    for at, to in self.rewinds:
      seen[to:at] = False
    return self.tokens[seen]


class Span(NamedTuple):
  """A turn of the policy, or of the environment, which has no logprobs."""

  tokens: np.ndarray  # int32 [M]
  logprobs: np.ndarray  # float32 [M]
  versions: np.ndarray  # int32 [M]
  candidates: Candidates | None = None  # [M, I]
  cut: bool = False  # a limit ended the turn


class Marks(NamedTuple):
  """When a sampler had done what with a group, in seconds of its clock, or of its learner's."""

  leased: float  # its ticket had come
  begun: float  # the weights had come, and the engine had the ticket
  started: float  # the first completion had a slot
  decoded: float  # the last completion was complete
  scored: float  # the verifier had judged all of them


@dataclasses.dataclass(frozen=True)
class Group:
  """The scored completions that answer one ticket."""

  ticket_id: str
  trajectories: tuple[Trajectory, ...]  # G of them; () if no sampler could answer
  verifier_failures: int = 0  # completions whose verifier crashed or timed out (reward 0)
  sampler_id: str = ""  # the process that made it (transport/names.py); "" = not sent yet
  marks: Marks | None = None  # of the learner's clock once sent; None = unknown

  def sampled_versions(self) -> np.ndarray:
    """int32 [U], of the tokens that a policy sampled, completion by completion."""
    return np.concatenate([t.versions[t.sampled] for t in self.trajectories])


@dataclasses.dataclass(frozen=True)
class FinishedGroup:
  """A group that the learner has received, with its ticket."""

  ticket: Ticket
  group: Group
  arrival_version: int  # newest version when it arrived: splits lag into in flight / in queue
  queued: float = float("nan")  # Unix time at which the ticket could be leased; nan = unknown
  arrived: float = float("nan")  # Unix time at which it arrived; nan = before a restart


class Timeline(NamedTuple):
  """When a ticket was where, from the queue to the end of the update; `STAGES` lie in between."""

  ticket_id: str
  sampler_id: str
  # Unix times of the learner's clock: one more than there are stages. nan = unknown.
  times: tuple[float, ...]


# Queued, sent to a sampler, ..., waiting for its batch, and used by the update.
STAGES = ("lease", "weights", "prefill", "decode", "verifier", "push", "queue", "use")


class PushStatus(enum.Enum):
  """The result of pushing a group."""

  ACCEPTED = "accepted"  # durable
  DUPLICATE = "duplicate"
  UNKNOWN = "unknown"  # no open ticket has its id
  REFUSED = "refused"


class PushOutcome(NamedTuple):
  """The learner's answer to a pushed group."""

  status: PushStatus
  reason: str = ""  # set if UNKNOWN or REFUSED


class ModelFiles(NamedTuple):
  """The small files of a published checkpoint as text, which samplers need besides the weights.

  A missing file is "".
  """

  config: str  # config.json
  tokenizer: str  # tokenizer.json
  tokenizer_config: str  # tokenizer_config.json
  chat_template: str = ""  # chat_template.jinja; tokenizer_config.json may hold one instead
  more_chat_templates: str = ""  # JSON object: name -> additional_chat_templates/NAME.jinja
  generation_config: str = ""  # generation_config.json
  special_tokens_map: str = ""  # special_tokens_map.json
  added_tokens: str = ""  # added_tokens.json


class PackedRows(NamedTuple):
  """The model's input: prompts and completions in B rows of T columns.

  A token attends to itself and to earlier columns that have not ended. So several completions can
  share a row, and even one copy of their prompt, without attending to each other (layouts:
  `replay/packing.py`). Q tokens of each row are scored: the policy's log-probabilities of these are
  computed.
  """

  tokens: Any  # int32 [B, T]
  positions: Any  # int32 [B, T], number of earlier tokens that it attends to
  segments: Any  # int32 [B, T], index of the token's prompt in the row, from 1; 0 = padding
  ends: Any  # int32 [B, T], the column from which on no token attends to this one
  sources: Any  # int32 [B, Q], the column whose next token is scored
  targets: Any  # int32 [B, Q], the token after that column
  candidates: Any = None  # int32 [B, Q, I], other tokens to score in its place; None = none


class Batch(NamedTuple):
  """The batch of one step: N completions of M tokens in each of A equal parts.

  The rows of a part hold the tokens of its N completions and no others.
  """

  rows: PackedRows  # [A, B, ...]
  places: Any  # int32 [A, N, M], index of a completion's token among the B * Q scored ones
  loss_mask: Any  # bool [A, N, M], True = a completion token that contributes to the loss
  sampler_logprobs: Any  # float32 [A, N, M], 0 where loss_mask is False
  versions: Any  # int32 [A, N, M], NO_VERSION where loss_mask is False
  rewards: Any  # float32 [A, N], shaped
  verdicts: Any  # float32 [A, N], the verifier's
  group_ids: Any  # int32 [A, N], the same for completions that answer the same prompt
  # float32 [A, N, M, I], the sampler's of `rows.candidates`; 0 where loss_mask is False
  candidate_logprobs: Any = None
  teacher_logprobs: Any = None  # float32 [A, N, M], of a teacher (learner/teacher.py); None = none


class SamplerStatus(NamedTuple):
  """The last state that a sampler reported."""

  name: str
  silent_seconds: float  # since its last heartbeat
  stats: dict[str, float]  # of its last heartbeat: tokens_per_second, version, slots, ...


class RunStatus(NamedTuple):
  """The state of a run, besides its metrics; as in `live.json` and on the wire."""

  session: str  # of the learner; "" = unknown
  run_id: str
  about: str  # one-line description
  at: float  # Unix time of this status; nan = unknown
  ended: str  # "finished" | "stopped" | "failed"; "" = running, as far as known
  num_steps: int
  tickets: dict[str, int]  # counts from the ledger
  samplers: tuple[SamplerStatus, ...]


class MetricsRow(NamedTuple):
  """The numeric values of a row of metrics.jsonl."""

  kind: str
  step: int
  values: dict[str, float]


class RunUpdate(NamedTuple):
  """The state of a run, and the rows of metrics.jsonl since the previous update."""

  status: RunStatus
  reset: bool  # `rows` start at the beginning: discard all rows received before
  position: int  # offset in metrics.jsonl after `rows`
  rows: list[MetricsRow]  # thinned if there are many
