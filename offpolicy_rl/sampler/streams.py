"""Completions for requests that come at any time, told piece by piece.

To the engine such a completion is an episode whose world only listens: a turn has a few tokens, and
the answer is silence, or the end.
"""

import dataclasses
import queue
import threading
from typing import Any, NamedTuple

import numpy as np

from offpolicy_rl import types
from offpolicy_rl.environments.episodes import Reply
from offpolicy_rl.sampler import engine as engine_lib
from offpolicy_rl.sampler import stopping

STOP, LENGTH = "stop", "length"  # why a completion ended
_NOTHING = np.zeros(0, np.int32)
_LOOK_SECONDS = 0.2  # an idle engine looks this often whether it has to end


class Piece(NamedTuple):
  """The next tokens of a completion."""

  index: int  # of the completion in its order
  tokens: list[int]  # up to the one that ends it, or that completes a stop text
  logprobs: np.ndarray  # float32 [M], of the distribution sampled from
  candidates: types.Candidates | None  # [M, I]
  ended: str  # STOP or LENGTH; "" = it goes on


@dataclasses.dataclass(eq=False)
class Order:
  """Completions of one prompt; `pieces` get there as they are sampled."""

  prompt: np.ndarray  # int32 [P]
  number: int  # of completions
  max_tokens: int
  temperature: float  # 0 = greedy
  seed: int  # uint32; with the same one and the same weights, the same completions
  stops: stopping.Stops
  pieces: queue.SimpleQueue = dataclasses.field(default_factory=queue.SimpleQueue)  # None = no more
  cancelled: bool = False  # nobody waits for pieces
  begun: bool = False  # in the engine


@dataclasses.dataclass(eq=False)
class _Stream:
  order: Order
  index: int
  tokens: list[int] = dataclasses.field(default_factory=list)
  rewards: tuple[float, ...] = ()


class Streams:
  """The world of an engine's completions, and the loop of the engine."""

  def __init__(self, steps: int):
    """`steps`: tokens of a piece, at most the engine's `Sizes.max_tokens`."""
    self._steps = steps
    self._arrived: queue.SimpleQueue[Order] = queue.SimpleQueue()
    self._orders: dict[str, Order] = {}  # by ticket, in the engine
    self._replies: list[tuple[Any, Reply]] = []
    self._lock, self._over, self._count = threading.Lock(), False, 0

  @property
  def waiting(self) -> int:
    """Orders that have no completion in the engine yet."""
    return self._arrived.qsize() + sum(not order.begun for order in tuple(self._orders.values()))

  def submit(self, order: Order) -> None:
    """Takes an order, from any thread."""
    with self._lock:
      if self._over:
        order.pieces.put(None)
      else:
        self._arrived.put(order)

  def run(self, engine: engine_lib.Engine, params: dict, stop: threading.Event) -> None:
    """Steps the engine until `stop`; then every order gets None. Call it once.

    Args:
      engine: whose episodes are this object.
      params: as `engine.step` takes them.
    """
    try:
      while not stop.is_set():
        self._admit(engine)
        self._step(engine, params)
    finally:
      with self._lock:
        self._over = True
      while not self._arrived.empty():
        self._arrived.get().pieces.put(None)
      for order in self._orders.values():
        order.pieces.put(None)

  def warm_up(self, engine: engine_lib.Engine, params: dict, prompt: np.ndarray) -> None:
    """Samples a little, so that all programs are compiled; before `run`."""
    self.submit(Order(prompt, 1, 2 * self._steps, 1.0, 0, stopping.Stops(())))
    self._admit(engine)
    while not engine.idle:
      self._step(engine, params)

  def _step(self, engine: engine_lib.Engine, params: dict) -> None:
    for ticket, _ in engine.step(params, 0):
      engine.pop_started(ticket.ticket_id)
      del self._orders[ticket.ticket_id]

  def _admit(self, engine: engine_lib.Engine) -> None:
    wait = engine.idle
    try:
      while True:
        order = self._arrived.get(timeout=_LOOK_SECONDS) if wait else self._arrived.get_nowait()
        wait = False
        self._count += 1
        name = f"request/{self._count}"
        self._orders[name] = order
        engine.add([_ticket(name, order)])
    except queue.Empty:
      pass

  def begin(self, ticket: types.Ticket, index: int) -> _Stream:
    """Begins a completion of an order."""
    order = self._orders[ticket.ticket_id]
    order.begun = True
    stream = _Stream(order, index)
    limit = 1 if order.cancelled else min(self._steps, order.max_tokens)
    self._replies.append((stream, Reply(_NOTHING, limit)))
    return stream

  def act(self, stream: _Stream, span: types.Span) -> None:
    """Tells a piece; the completion goes on until its end."""
    order, before = stream.order, len(stream.tokens)
    stream.tokens += span.tokens.tolist()
    ended, length = self._end(stream, before)
    kept = length - before
    candidates = span.candidates
    if candidates is not None:
      candidates = types.Candidates(candidates.tokens[:kept], candidates.logprobs[:kept])
    piece = Piece(
      stream.index, stream.tokens[before:length], span.logprobs[:kept], candidates, ended
    )
    order.pieces.put(piece)
    if ended or order.cancelled:
      reply = Reply(_NOTHING, 0, types.DONE)
    else:
      reply = Reply(_NOTHING, min(self._steps, order.max_tokens - length))
    self._replies.append((stream, reply))

  def _end(self, stream: _Stream, before: int) -> tuple[str, int]:
    """(why a completion ends here or "", its number of tokens)."""
    order, tokens = stream.order, stream.tokens
    length = order.stops.length(tokens, before)
    if length is not None:
      return STOP, length
    if tokens[-1] in order.stops.tokens:
      return STOP, len(tokens)
    return LENGTH if len(tokens) == order.max_tokens else "", len(tokens)

  def replies(self, seconds: float) -> list[tuple[Any, Reply]]:
    """All that there is, at once."""
    del seconds  # nothing is ever waited for
    replies, self._replies = self._replies, []
    return replies


def _ticket(name: str, order: Order) -> types.Ticket:
  return types.Ticket(
    ticket_id=name,
    kind=types.TRAIN,  # whose candidates are recorded
    step=0,
    group_index=order.seed,
    prompt_tokens=order.prompt,
    answer="",
    min_version=0,
    max_version=0,
    num_completions=order.number,
    temperature=order.temperature,
  )
