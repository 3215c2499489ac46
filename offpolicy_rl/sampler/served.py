"""Generation by a vLLM server, with the interface of `engine.Engine`.

A completion that plays in an environment is a request for each of its turns, with all that came
before as the prompt; the server's cache of prefixes has most of that.

The server reads its weights from a directory, which is rewritten for every version. Then it is told
to load them, and to drop the keys and values of older weights. A server can keep old weights
silently; so after each update the log-probabilities of one completion are compared with those of
these weights. The server has seen its prompt before the update, so that a kept cache is noticed,
too.

Start the server so that it loads these weights, returns log-probabilities of the distribution
sampled from, and can be told to load (`vllm_worker.py`), on an address that nobody else reaches:

    VLLM_SERVER_DEV_MODE=1 vllm serve DIR --host 127.0.0.1 --logprobs-mode processed_logprobs
      --worker-extension-cls offpolicy_rl.sampler.vllm_worker.Worker
"""

import collections
import concurrent.futures
import functools
import http.client
import json
import logging
import pathlib
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_rl import types
from offpolicy_rl.environments.episodes import World
from offpolicy_rl.model import decoder, policy, pretrained
from offpolicy_rl.sampler import in_progress, sampling, stopping
from offpolicy_rl.sampler.in_progress import Completion, Finished, Group

_LOG = logging.getLogger(__name__)
_WAIT_SECONDS = 0.1  # of a step, for an answer
_LOOK_SECONDS = 0.02  # the same while environments may answer, too
_PAUSES = (0.5, 2.0)  # seconds before a request is repeated whose connection was dropped
_PROBE_TOKENS = 16  # of the completion that is compared


class ServerError(RuntimeError):
  """The server refused or failed; names the request and the answer."""


class _Dropped(ServerError):
  """The server closed the connection without an answer."""


class StaleWeights(ServerError):
  """The server's log-probabilities are not those of the weights that it was told to load."""


class SamplingParams(NamedTuple):
  """The parameters of sampling."""

  max_tokens: int
  stops: stopping.Stops
  truncation: sampling.Truncation
  seed: int
  candidates: int = 0  # to record with every token


# Not through a proxy, whatever the environment says: the server is on a private address.
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class VllmServer:
  """An OpenAI-compatible server with vLLM's extensions."""

  def __init__(self, url: str, params: SamplingParams, *, seconds: float = 600.0):
    """Sends nothing yet; an answer may take `seconds`."""
    self.params, self._url, self._seconds = params, url.rstrip("/"), seconds

  def load(self) -> None:
    """Has it read its weights again and drop its cache of prompts."""
    self._post("/collective_rpc", {"method": "load_again"})
    self._post("/reset_prefix_cache?reset_running_requests=true&reset_external=true", {})

  def complete(
    self,
    ticket: types.Ticket,
    *,
    number: int,
    max_tokens: int | None = None,
    context: np.ndarray | None = None,
    turn: tuple[int, ...] = (),
  ) -> list[dict]:
    """Choices for a ticket: token_ids, logprobs.token_logprobs, finish_reason; or ServerError.

    Args:
      number: of choices.
      max_tokens: of each; None = as many as a completion may have.
      context: int32 [P], what they continue; None = the ticket's prompt.
      turn: (index in the group, turn) of an episode, for which the seed is another.
    """
    params = self.params
    request = {
      "prompt": (ticket.prompt_tokens if context is None else context).tolist(),
      "n": number,
      "max_tokens": max_tokens or params.max_tokens,
      "temperature": ticket.temperature,
      "seed": _seed(params.seed, ticket, turn),
      "stop_token_ids": list(params.stops.tokens),
      "stop": list(params.stops.texts),
      "top_k": params.truncation.top_k or -1,
      "top_p": params.truncation.top_p,
      "min_p": params.truncation.min_p,
      "repetition_penalty": 1.0,  # else vLLM takes that of the checkpoint's generation_config.json
      "logprobs": max(1, params.candidates),
      "return_token_ids": True,
      "return_tokens_as_token_ids": params.candidates > 0,
      "skip_special_tokens": False,
    }
    choices = self._post("/v1/completions", request).get("choices", ())
    if len(choices) != number:
      raise ServerError(f"{self._url}: got {len(choices)} choices, expected {number}")
    return sorted(choices, key=lambda choice: choice["index"])

  def _post(self, path: str, body: dict) -> dict:
    for pause in _PAUSES:
      try:
        return self._post_once(path, body)
      except _Dropped as error:  # every request may be repeated
        _LOG.warning("%s; asking once more", error)
        time.sleep(pause)
    return self._post_once(path, body)

  def _post_once(self, path: str, body: dict) -> dict:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(self._url + path, json.dumps(body).encode(), headers)
    try:
      with _DIRECTLY.open(request, timeout=self._seconds) as answer:
        text = answer.read()
      return json.loads(text) if text.strip() else {}
    except urllib.error.HTTPError as error:
      detail = error.read(300).decode(errors="replace")
      raise ServerError(f"{self._url}{path}: {error.code} {detail}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
      reset = isinstance(getattr(error, "reason", error), ConnectionResetError)
      raise (_Dropped if reset else ServerError)(f"{self._url}{path}: {error}") from None


def _seed(seed: int, ticket: types.Ticket, turn: tuple[int, ...]) -> int:
  """The seed of a request; the server derives one per choice."""
  numbers = (seed, 0 if ticket.kind == types.TRAIN else 1, ticket.group_index, *turn)
  return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def _up_to_stop(sampled: types.Trajectory, stops: stopping.Stops) -> types.Trajectory:
  """Cuts behind the first stop text: servers do not notice those with special tokens."""
  end = stops.length(sampled.tokens.tolist(), 0)
  if end is None:
    return sampled
  tokens, logprobs, versions = sampled.tokens[:end], sampled.logprobs[:end], sampled.versions[:end]
  candidates = sampled.candidates and types.Candidates(*(x[:end] for x in sampled.candidates))
  return types.Trajectory(tokens, logprobs, versions, finished=True, candidates=candidates)


def trajectory(choice: dict, version: int, candidates: int = 0) -> types.Trajectory:
  """The completion in a choice, with so many candidates of each token.

  Raises:
    ServerError: no tokens, or no finite log-probability for each, or fewer candidates.
  """
  tokens = choice.get("token_ids")
  logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
  if not tokens or logprobs is None or len(tokens) != len(logprobs):
    raise ServerError(
      f"choices: got {len(tokens or ())} token_ids and {len(logprobs or ())} logprobs, expected as "
      "many of both; is it a vLLM server?"
    )
  values = np.array(logprobs, np.float32)
  if not np.all(np.isfinite(values)):
    raise ServerError(f"choices: a log-probability is not finite: {logprobs}")
  return types.Trajectory(
    tokens=np.array(tokens, np.int32),
    logprobs=values,
    versions=np.full(len(tokens), version, np.int32),
    finished=choice.get("finish_reason") == "stop",
    candidates=_candidates(choice, len(tokens), candidates) if candidates else None,
  )


def _candidates(choice: dict, length: int, number: int) -> types.Candidates:
  found = [place or {} for place in choice["logprobs"].get("top_logprobs") or [{}]]
  ids = [[_token_id(name) for name in place] for place in found]
  if len(found) != length or any(None in place or len(place) < number for place in ids):
    raise ServerError(
      f"choices: got {len(found)} top_logprobs, the first with {str(list(found[0]))[:100]}, "
      f"expected {length}, each with {number} ids of tokens, as sampler.top_logprobs asks: only a "
      f"vLLM server started with --max-logprobs {number} or more gives these"
    )
  places = [
    sorted(zip(names, place.values(), strict=True), key=lambda pair: (-pair[1], pair[0]))[:number]
    for names, place in zip(ids, found, strict=True)
  ]
  tokens, logprobs = np.moveaxis(np.array(places, np.float64), -1, 0)
  return types.Candidates(
    tokens.astype(np.int32), np.maximum(logprobs, types.MIN_LOGPROB).astype(np.float32)
  )


def _token_id(name: str) -> int | None:
  """The id in vLLM's "token_id:ID"; None for any other text."""
  prefix, _, number = name.rpartition(":")
  return int(number) if prefix == "token_id" and number.isdecimal() else None


class ServedEngine:
  """Answers tickets by a server; weights change only while nothing is in progress."""

  def __init__(
    self,
    server: VllmServer,
    config: decoder.DecoderConfig,
    *,
    directory: pathlib.Path,
    slots: int,
    tolerance: float,
    episodes: World | None = None,
    most: int = 0,
  ):
    """Sends nothing to the server yet.

    Args:
      config: of the model in `directory`, the published checkpoint that the server was started
        with, whose weights are replaced.
      slots: requests at a time.
      tolerance: largest difference between log-probabilities, in nats.
      episodes: play completions, turn by turn; None = every completion has one turn.
      most: completions begun at a time, also those that wait for their environments; 0 = slots.
    """
    self._server, self._config, self._directory = server, config, directory
    self._dtypes = pretrained.Checkpoint(directory).dtypes
    self._slots, self._most = slots, max(slots, most)
    self._tolerance, self._episodes = tolerance, episodes
    self._pool = concurrent.futures.ThreadPoolExecutor(slots, thread_name_prefix="served")
    self._queued: collections.deque[types.Ticket] = collections.deque()
    self._groups: dict[concurrent.futures.Future, Group] = {}  # that the server answers as a whole
    self._turns: dict[concurrent.futures.Future, Completion] = {}  # that it answers
    self._waiting: dict[Any, Completion] = {}  # for their environments
    self._started: dict[str, float] = {}  # ticket id -> when the server got it
    self._probe: types.Ticket | None = None  # the longest prompt so far: caches hold whole blocks
    self._params, self._version = None, 0

  @property
  def idle(self) -> bool:
    return not (self._queued or self._begun)

  @property
  def _begun(self) -> int:
    """Completions that are not over."""
    groups = sum(group.ticket.num_completions for group in self._groups.values())
    return groups + len(self._turns) + len(self._waiting)

  @property
  def room(self) -> int:
    """Completions that could begin now."""
    queued = sum(ticket.num_completions for ticket in self._queued)
    return self._most - queued - self._begun

  room_soon = room  # when answers come is unknown

  @property
  def busy(self) -> int:
    """Completions that the server has."""
    return min(self._slots, self._begun - len(self._waiting))

  @property
  def progress(self) -> dict[str, int]:
    """Ticket id -> seconds: answers come as a whole, and requests have their own time limit."""
    now = int(time.monotonic())
    played = (completion.group for completion in (*self._turns.values(), *self._waiting.values()))
    begun = {group.ticket.ticket_id: now for group in (*self._groups.values(), *played)}
    return {ticket.ticket_id: 0 for ticket in self._queued} | begun

  def add(self, tickets: list[types.Ticket]) -> None:
    """Puts tickets into the queue."""
    self._queued.extend(tickets)
    prompts = [ticket for ticket in (self._probe, *tickets) if ticket is not None]
    self._probe = max(prompts, key=lambda ticket: ticket.prompt_tokens.size, default=None)

  def step(self, params: dict, version: int) -> list[Finished]:
    """Requests what can be; returns the complete groups, unscored. StaleWeights, ServerError."""
    if params is not self._params and self._queued and not self._begun:
      assert self._probe is not None, "it is among those that are queued"
      self._load(params, self._probe)
      self._params, self._version = params, version
    while self._queued and params is self._params:
      self._begin(self._queued.popleft())
    waits = _LOOK_SECONDS if self._waiting else _WAIT_SECONDS
    complete = self._hear(waits if self._waiting and not self.busy else 0)
    asked = (*self._groups, *self._turns)
    done, _ = concurrent.futures.wait(asked, 0 if complete else waits, "FIRST_COMPLETED")
    for answer in done:
      if group := self._groups.pop(answer, None):
        complete.append((group.ticket, answer.result()))
      else:
        self._act(self._turns.pop(answer), answer.result())
    return complete

  def pop_started(self, ticket_id: str) -> float | None:
    """The same as `Engine.pop_started`."""
    return self._started.pop(ticket_id, None)

  def refresh(self, params: dict) -> None:
    """Raises NotImplementedError: a server takes other weights between groups only."""
    raise NotImplementedError

  def _begin(self, ticket: types.Ticket) -> None:
    """Asks for a whole group, or lets its episodes begin."""
    self._started[ticket.ticket_id] = time.monotonic()
    group = Group(ticket, pages=[])
    for index in range(ticket.num_completions):
      episode = self._episodes.begin(ticket, index) if self._episodes else None
      if episode is None:  # the same for all of a group
        self._groups[self._pool.submit(self._answer, ticket, self._version)] = group
        return
      self._waiting[episode] = Completion(group, index, episode=episode)

  def _answer(self, ticket: types.Ticket, version: int, **turn: Any) -> list[types.Trajectory]:
    """Runs in a thread."""
    number = 1 if turn else ticket.num_completions
    choices = self._server.complete(ticket, number=number, **turn)
    params, recorded = self._server.params, self._recorded(ticket)
    return [_up_to_stop(trajectory(c, version, recorded), params.stops) for c in choices]

  def _recorded(self, ticket: types.Ticket) -> int:
    """Candidates recorded with each token; evaluation needs none."""
    return self._server.params.candidates if ticket.kind == types.TRAIN else 0

  def _hear(self, seconds: float) -> list[Finished]:
    """Takes the replies of environments, asks for the next turns; returns complete groups."""
    complete = []
    for episode, reply in self._episodes.replies(seconds) if self._episodes else ():
      completion = self._waiting.pop(episode)
      completion.spend("world")
      group = completion.group
      if reply.ended:
        group.done[completion.index] = in_progress.trajectory(
          completion, episode.rewards, reply.ended
        )
        if group.is_complete:
          complete.append((group.ticket, group.trajectories))
        continue
      if reply.to is not None:
        completion.go_back(reply.to)
      if reply.tokens.size:
        recorded = self._recorded(group.ticket)
        completion.spans.append(in_progress.environment_span(reply.tokens, recorded))
      asked = self._pool.submit(
        self._answer,
        group.ticket,
        self._version,
        context=completion.tokens,
        max_tokens=reply.limit,
        turn=(completion.index, completion.turn),
      )
      self._turns[asked] = completion
    return complete

  def _act(self, completion: Completion, sampled: list[types.Trajectory]) -> None:
    """Gives the policy's turn to its environment."""
    assert self._episodes is not None, "it began there"
    [turn] = sampled
    completion.spend("model")
    span = types.Span(
      turn.tokens, turn.logprobs, turn.versions, turn.candidates, cut=not turn.finished
    )
    completion.spans.append(span)
    completion.turn += 1
    self._waiting[completion.episode] = completion
    self._episodes.act(completion.episode, span)

  def _load(self, params, probe: types.Ticket) -> None:
    self._server.complete(probe, number=1, max_tokens=1)  # the old weights have seen the prompt
    self._write(params)
    self._server.load()
    gap = self._gap(params, probe)
    _LOG.info("log-probabilities of the server differ by %.2g nats at most", gap)
    if not gap <= self._tolerance:
      raise StaleWeights(
        f"the server's log-probabilities differ by {gap:.3g} nats from those of its weights, "
        f"expected at most {self._tolerance:g}: it keeps old weights, or what they computed of "
        "prompts, or computes otherwise"
      )

  def _write(self, params) -> None:
    """Replaces the weights in the directory, which always contains some."""
    with tempfile.TemporaryDirectory(dir=self._directory) as folder:
      new = pathlib.Path(folder)
      pretrained.save(new, self._config, params, self._dtypes)
      names = [file.name for file in new.iterdir()]
      old = {file.name for file in self._directory.glob("*.safetensors")} | {pretrained.INDEX}
      for name in names:
        (new / name).rename(self._directory / name)
      for name in old.difference(names):
        (self._directory / name).unlink(missing_ok=True)

  def _gap(self, params, ticket: types.Ticket) -> float:
    [choice] = self._server.complete(ticket, number=1, max_tokens=_PROBE_TOKENS)
    served = trajectory(choice, 0)
    expected = logprobs(self._config, params, ticket, served.tokens)
    return float(np.abs(served.logprobs - expected).max())


def logprobs(
  config: decoder.DecoderConfig, params: dict, ticket: types.Ticket, tokens: np.ndarray
) -> np.ndarray:
  """Log-probabilities of a completion's tokens under softmax(logits / (temperature or 1))."""
  row = np.concatenate([ticket.prompt_tokens, tokens])
  columns = -(-row.size // 64) * 64  # few sizes, few compilations
  padded = np.zeros((1, columns), np.int32)
  padded[0, : row.size] = row
  log_p = _log_softmax(config, params, padded, ticket.temperature or 1.0)
  at = np.arange(ticket.prompt_tokens.size - 1, row.size - 1)
  return np.asarray(log_p[0, at, tokens])


@functools.partial(jax.jit, static_argnums=0)
def _log_softmax(config, params, tokens, temperature: float) -> jax.Array:
  positions = jnp.arange(tokens.shape[1])[None]
  return jax.nn.log_softmax(policy.apply(config, params, tokens, positions)[0] / temperature)
