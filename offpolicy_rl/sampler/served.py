"""Generation by a vLLM server, behind the interface of `engine.Engine`.

The server reads its weights from a directory, which is written anew for every version; then it is
told to load them and to forget the keys and values of prompts that older weights computed. What it
answers is not believed: after each update the log-probabilities of one completion are compared with
those that these weights really give, because a server can keep old ones without saying so. The
prompt is one that it has seen before the update, so that a cache which was kept is noticed, too.

Start it so that it loads what we write, gives the log-probabilities of the distribution sampled
from, and can be told to load (`vllm_worker.py`), on an address that nobody else reaches:

    VLLM_SERVER_DEV_MODE=1 vllm serve DIR --host 127.0.0.1 --logprobs-mode processed_logprobs
      --worker-extension-cls offpolicy_rl.sampler.vllm_worker.Worker
"""

import collections
import concurrent.futures
import dataclasses
import functools
import http.client
import json
import logging
import pathlib
import tempfile
import time
import urllib.error
import urllib.request
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offpolicy_rl import types
from offpolicy_rl.model import decoder, policy, pretrained
from offpolicy_rl.sampler import sampling, stopping

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 0.1  # how long a step waits for something to get complete
_PROBE_TOKENS = 16  # of the completion that is compared


class ServerError(RuntimeError):
  """The server did not do what it was asked to; names the request and the answer."""


class StaleWeights(ServerError):
  """Its log-probabilities are not those of the weights that it was told to load."""


class Wanted(NamedTuple):
  """How completions are sampled."""

  max_tokens: int
  stops: stopping.Stops
  truncation: sampling.Truncation
  seed: int


# Not through a proxy, whatever the environment says: the server is on a private address.
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
  """An OpenAI-compatible server with vLLM's extensions."""

  def __init__(self, url: str, wanted: Wanted, *, seconds: float = 600.0):
    """`seconds`: how long an answer may take."""
    self._url, self._wanted, self._seconds = url.rstrip("/"), wanted, seconds

  @property
  def stops(self) -> stopping.Stops:
    """What ends a completion."""
    return self._wanted.stops

  def load(self) -> None:
    """Makes it read its weights again, and forget what it has cached of prompts."""
    self._post("/collective_rpc", {"method": "load_again"})
    self._post("/reset_prefix_cache?reset_running_requests=true&reset_external=true", {})

  def complete(
    self, ticket: types.Ticket, *, number: int, max_tokens: int | None = None
  ) -> list[dict]:
    """Choices for a ticket: token_ids, logprobs.token_logprobs, finish_reason.

    `max_tokens`: other than usual.

    Raises:
      ServerError: it did not answer so.
    """
    wanted = self._wanted
    request = {
      "prompt": ticket.prompt_tokens.tolist(),
      "n": number,
      "max_tokens": max_tokens or wanted.max_tokens,
      "temperature": ticket.temperature,
      "seed": _seed(wanted.seed, ticket),
      "stop_token_ids": list(wanted.stops.tokens),
      "stop": list(wanted.stops.texts),
      "top_k": wanted.truncation.top_k or -1,
      "top_p": wanted.truncation.top_p,
      "min_p": wanted.truncation.min_p,
      "repetition_penalty": 1.0,  # else vLLM takes that of the checkpoint's generation_config.json
      "logprobs": 1,
      "return_token_ids": True,
      "skip_special_tokens": False,
    }
    choices = self._post("/v1/completions", request).get("choices", ())
    if len(choices) != number:
      raise ServerError(f"{self._url}: got {len(choices)} choices, expected {number}")
    return sorted(choices, key=lambda choice: choice["index"])

  def _post(self, path: str, body: dict) -> dict:
    request = urllib.request.Request(
      self._url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
      with _DIRECTLY.open(request, timeout=self._seconds) as answer:
        text = answer.read()
      return json.loads(text) if text.strip() else {}
    except urllib.error.HTTPError as error:
      detail = error.read(300).decode(errors="replace")
      raise ServerError(f"{self._url}{path}: {error.code} {detail}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
      raise ServerError(f"{self._url}{path}: {error}") from None


def _seed(seed: int, ticket: types.Ticket) -> int:
  """Of a ticket's completions; the server derives one for each."""
  kind = 0 if ticket.kind == types.TRAIN else 1
  return int(np.random.SeedSequence((seed, kind, ticket.group_index)).generate_state(1)[0] >> 1)


def _up_to_stop(made: types.Trajectory, stops: stopping.Stops) -> types.Trajectory:
  """Without what comes behind a stop text: servers do not see one with special tokens in it."""
  end = stops.found(made.tokens.tolist(), 0)
  if end is None:
    return made
  return dataclasses.replace(
    made,
    tokens=made.tokens[:end],
    logprobs=made.logprobs[:end],
    versions=made.versions[:end],
    finished=True,
  )


def trajectory(choice: dict, version: int) -> types.Trajectory:
  """One choice of the server.

  Raises:
    ServerError: it has no tokens, or not a finite log-probability for each.
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
  )


class ServedEngine:
  """Answers tickets by a server; weights change only while nothing is under way."""

  def __init__(
    self,
    server: Server,
    config: decoder.DecoderConfig,
    *,
    directory: pathlib.Path,
    slots: int,
    most: float,
  ):
    """Prepares; nothing is asked yet.

    Args:
      config: of the model in `directory`, a published checkpoint, which the server was started with
        and whose weights are replaced.
      slots: completions under way at a time.
      most: how far apart log-probabilities may be, in nats.
    """
    self._server, self._config, self._directory = server, config, directory
    self._dtypes = pretrained.Checkpoint(directory).dtypes
    self._slots, self._most = slots, most
    self._pool = concurrent.futures.ThreadPoolExecutor(slots, thread_name_prefix="served")
    self._waiting: collections.deque[types.Ticket] = collections.deque()
    self._asked: dict[concurrent.futures.Future, types.Ticket] = {}
    self._probe: types.Ticket | None = None  # the longest prompt so far: caches hold whole blocks
    self._params = None

  @property
  def idle(self) -> bool:
    """Nothing is being answered."""
    return not (self._waiting or self._asked)

  @property
  def room(self) -> int:
    """Completions that could be asked for now."""
    under_way = [*self._waiting, *self._asked.values()]
    return self._slots - sum(ticket.num_completions for ticket in under_way)

  room_soon = room  # nothing is known of what will end when

  @property
  def progress(self) -> dict[str, int]:
    """Ticket id -> seconds: an answer comes all at once, and the request has a limit of its own."""
    now = int(time.monotonic())
    return {t.ticket_id: 0 for t in self._waiting} | {
      t.ticket_id: now for t in self._asked.values()
    }

  def add(self, tickets: list[types.Ticket]) -> None:
    """Answers these, too."""
    self._waiting.extend(tickets)
    prompts = [ticket for ticket in (self._probe, *tickets) if ticket is not None]
    self._probe = max(prompts, key=lambda ticket: ticket.prompt_tokens.size, default=None)

  def step(self, params, version: int) -> list[tuple[types.Ticket, list[types.Trajectory]]]:
    """Asks for what waits -> the groups that got complete, unscored.

    Raises:
      StaleWeights, ServerError: the server can't be used.
    """
    if params is not self._params and self._waiting and not self._asked:
      self._load(params, self._probe)
      self._params = params
    while self._waiting and params is self._params:
      ticket = self._waiting.popleft()
      answer = self._pool.submit(self._answer, ticket, version)
      self._asked[answer] = ticket
    if not self._asked:
      return []
    done, _ = concurrent.futures.wait(self._asked, _LOOK_SECONDS, "FIRST_COMPLETED")
    return [(self._asked.pop(answer), answer.result()) for answer in done]

  def _answer(self, ticket: types.Ticket, version: int) -> list[types.Trajectory]:
    choices = self._server.complete(ticket, number=ticket.num_completions)
    made = (trajectory(choice, version) for choice in choices)
    return [_up_to_stop(one, self._server.stops) for one in made]

  def _load(self, params, probe: types.Ticket) -> None:
    """Makes the server use these parameters, and sees that it does."""
    self._server.complete(probe, number=1, max_tokens=1)  # so the old weights have seen the prompt
    self._write(params)
    self._server.load()
    gap = self._gap(params, probe)
    _LOG.info("log-probabilities of the server differ by %.2g nats at most", gap)
    if not gap <= self._most:
      raise StaleWeights(
        f"the server's log-probabilities differ by {gap:.3g} nats from those of its weights, "
        f"expected at most {self._most:g}: it keeps old weights, or what they computed of prompts, "
        "or computes otherwise"
      )

  def _write(self, params) -> None:
    """In place of the weights that are there."""
    with tempfile.TemporaryDirectory(dir=self._directory) as folder:
      new = pathlib.Path(folder)
      pretrained.save(new, self._config, params, self._dtypes)
      names = [file.name for file in new.iterdir()]
      old = {file.name for file in self._directory.glob("*.safetensors")} | {pretrained.INDEX}
      for name in names:  # before what is too much goes: there are weights at any time
        (new / name).rename(self._directory / name)
      for name in old.difference(names):
        (self._directory / name).unlink(missing_ok=True)

  def _gap(self, params, ticket: types.Ticket) -> float:
    [choice] = self._server.complete(ticket, number=1, max_tokens=_PROBE_TOKENS)
    told = trajectory(choice, 0)
    expected = logprobs(self._config, params, ticket, told.tokens)
    return float(np.abs(told.logprobs - expected).max())


def logprobs(
  config: decoder.DecoderConfig, params, ticket: types.Ticket, tokens: np.ndarray
) -> np.ndarray:
  """Of a completion's tokens, under softmax(logits / temperature); at 0 under softmax(logits)."""
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
