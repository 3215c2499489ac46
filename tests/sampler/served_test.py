"""A server in place of our engine: against a stub that speaks vLLM's dialect and can misbehave."""

import dataclasses
import http.server
import json
import socket
import threading

import jax
import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.model import families, policy, pretrained
from offpolicy_rl.sampler import sampling, served, stopping
from tests.model.families_test import LLAMA

END = 1
CONFIG = families.read(LLAMA | {"vocab_size": 264})
NEXT = jax.jit(policy.apply, static_argnums=0)
WANTED = served.SamplingParams(5, stopping.Stops((END,)), sampling.NONE, seed=3)


class Server(http.server.ThreadingHTTPServer):
  request_queue_size = 128  # as many connections wait to be accepted; 5 is the default


class Stub:
  """Loads what is in the directory and samples from it, one token after the other.

  As vLLM, it keeps what it computed of a prompt's full blocks until it is told to forget that.
  """

  BLOCK = 2  # tokens

  def __init__(self, directory, config=CONFIG, columns=48):
    """`columns`: of the rows that it computes, at least as many as a prompt with completion."""
    self.config, self.columns = config, columns
    self.directory, self.keeps_old, self.mangle = directory, False, lambda choice: choice
    self.keeps_prompts, self.cached = False, {}  # blocks of a prompt -> the weights that read them
    self.requests, self.params, self.drops = [], None, 0  # drops: connections to close unanswered
    stub = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stub.requests.append((self.path, body))
        if stub.drops:
          stub.drops -= 1
          self.connection.shutdown(socket.SHUT_RDWR)
          return
        answer = stub.answer(self.path, body)
        self.send_response(200 if answer is not None else 404)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

      def log_message(self, *_):
        pass

    self.server = Server(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self.server.server_port}"
    threading.Thread(target=self.server.serve_forever, daemon=True).start()

  def close(self):
    self.server.shutdown()

  def answer(self, path, body):
    if path == "/collective_rpc" and body["method"] == "load_again":
      if not (self.keeps_old and self.params):
        found = pretrained.Checkpoint(self.directory)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = policy.shapes(self.config)
        self.params = found.load(jax.tree.map(lambda _: here, shapes))
      return {"results": [None]}
    if path.partition("?")[0] == "/reset_prefix_cache":
      if not self.keeps_prompts:
        self.cached.clear()
      return {}
    if path == "/v1/completions":
      return {"choices": [self.mangle(self.choice(body, i)) for i in reversed(range(body["n"]))]}
    return None

  def choice(self, body, index: int) -> dict:
    draw = np.random.default_rng((body["seed"], index))
    blocks = body["prompt"][: len(body["prompt"]) // self.BLOCK * self.BLOCK]
    params = self.cached.setdefault(tuple(blocks), self.params) if blocks else self.params
    tokens, logprobs, likeliest = [], [], []
    ends = set(body.get("stop_token_ids", (END,)))
    while len(tokens) < body["max_tokens"] and not ends.intersection(tokens):
      row = body["prompt"] + tokens
      padded = np.array([row + [0] * (self.columns - len(row))], np.int32)  # compiled once
      positions = np.arange(self.columns)[None]
      logits = NEXT(self.config, params, padded, positions)[0][0, len(row) - 1]
      log_p = np.asarray(jax.nn.log_softmax(logits / (body["temperature"] or 1.0)), np.float64)
      drawn = draw.choice(log_p.size, p=np.exp(log_p) / np.exp(log_p).sum())
      tokens.append(int(drawn if body["temperature"] else log_p.argmax()))
      logprobs.append(float(log_p[tokens[-1]]))
      shown = {*np.argsort(-log_p)[: body["logprobs"]].tolist(), tokens[-1]}
      likeliest.append({f"token_id:{token}": float(log_p[token]) for token in sorted(shown)})
    reason = "stop" if ends.intersection(tokens) else "length"
    return {
      "index": index,
      "token_ids": tokens,
      "logprobs": {"token_logprobs": logprobs, "top_logprobs": likeliest},
      "finish_reason": reason,
    }


@pytest.fixture
def directory(tmp_path):
  (tmp_path / pretrained.CONFIG).write_text(json.dumps(LLAMA | {"vocab_size": 264}))
  names = pretrained.tensor_shapes(CONFIG)
  pretrained.save(tmp_path, CONFIG, weights(0), dict.fromkeys(names, "float32"))
  return tmp_path


@pytest.fixture
def stub(directory):
  made = Stub(directory)
  made.answer("/collective_rpc", {"method": "load_again"})  # as a server that was started
  yield made
  made.close()


def weights(seed: int):
  return policy.init(CONFIG, jax.random.key(seed))


def ticket(index: int, number: int = 2, temperature: float = 0.7) -> types.Ticket:
  prompt = np.array([5, 6, 7 + index], np.int32)
  return types.Ticket(
    f"train/0/{index}", types.TRAIN, 0, index, prompt, "", 0, 9, number, temperature
  )


def completion_request(index: int) -> dict:
  prompt = [5, 6, 7 + index]
  return {"prompt": prompt, "n": 1, "seed": 0, "max_tokens": 1, "temperature": 1.0, "logprobs": 1}


def engine(stub, wanted=WANTED, **changes) -> served.ServedEngine:
  how = {"directory": stub.directory, "slots": 4, "tolerance": 1e-3} | changes
  return served.ServedEngine(served.VllmServer(stub.url, wanted, seconds=20), CONFIG, **how)


def answers(engine, params, version):
  found = {}
  while not engine.idle:
    found |= {t.ticket_id: group for t, group in engine.step(params, version)}
  return found


def test_tickets_are_answered_with_the_servers_tokens_and_logprobs(stub):
  made, params = engine(stub), weights(1)
  assert made.room == 4
  made.add([ticket(0), ticket(1)])
  assert made.room == 0
  found = answers(made, params, version=3)
  assert list(found) and {len(group) for group in found.values()} == {2}
  for index in (0, 1):
    for trajectory in found[f"train/0/{index}"]:
      expected = served.logprobs(CONFIG, params, ticket(index), trajectory.tokens)
      np.testing.assert_allclose(trajectory.logprobs, expected, atol=1e-4)
      assert set(trajectory.versions) == {3}
      assert trajectory.finished == (END in trajectory.tokens)
  sent = [body for path, body in stub.requests if path == "/v1/completions" and body["n"] == 2]
  assert len({body["seed"] for body in sent}) == 2
  assert all(body["return_token_ids"] and body["stop_token_ids"] == [END] for body in sent)


def test_candidates_are_requested_from_the_server(stub):
  made, params = engine(stub, WANTED._replace(candidates=3)), weights(1)
  made.add([ticket(0), dataclasses.replace(ticket(1), kind=types.EVAL)])
  found = answers(made, params, version=3)
  assert {t.candidates for t in found["train/0/1"]} == {None}
  for trajectory in found["train/0/0"]:
    assert trajectory.candidates.tokens.shape == (trajectory.tokens.size, 3)
    for rank in range(3):
      ids = trajectory.candidates.tokens[:, rank]
      alone = [
        served.logprobs(CONFIG, params, ticket(0), np.append(trajectory.tokens[:t], ids[t]))[-1]
        for t in range(ids.size)
      ]
      np.testing.assert_allclose(trajectory.candidates.logprobs[:, rank], alone, atol=1e-4)
    assert np.all(np.diff(trajectory.candidates.logprobs) <= 0)


@pytest.mark.parametrize(
  "shown", [None, [], [{"a": -0.1, "b": -1.0}], [{"token_id:5": -0.1}], [{"token_id:x": -1.0}] * 9]
)
def test_a_server_without_ids_of_candidates_is_named(stub, shown):
  mangled = lambda c: c | {"logprobs": c["logprobs"] | {"top_logprobs": shown}}
  [choice] = stub.answer("/v1/completions", completion_request(0) | {"logprobs": 2})["choices"]
  assert served.trajectory(choice, 0, 2).candidates is not None
  with pytest.raises(served.ServerError, match="as sampler.top_logprobs asks.*--max-logprobs 2"):
    served.trajectory(mangled(choice), 0, 2)


def test_the_checkpoints_own_sampling_is_switched_off_and_stop_texts_end_completions(stub):
  whole, params = engine(stub), weights(1)
  whole.add([ticket(0)])
  [trajectories] = answers(whole, params, version=3).values()
  assert all(body["repetition_penalty"] == 1.0 for path, body in stub.requests if "prompt" in body)
  second = int(trajectories[0].tokens[1])  # stands for a special token, which servers overlook
  stops = stopping.Stops((END,), ("!",), lambda _: "", lambda ids: "!" if second in ids else "")
  cut = engine(stub, served.SamplingParams(5, stops, sampling.NONE, seed=3))
  cut.add([ticket(0)])
  [found] = answers(cut, params, version=3).values()
  for one, other in zip(found, trajectories, strict=True):
    tokens = other.tokens.tolist()
    length = tokens.index(second) + 1 if second in tokens else len(tokens)
    assert one.tokens.tolist() == tokens[:length] and one.logprobs.size == length
    assert one.finished == (second in tokens or END in tokens)


def test_new_weights_are_written_loaded_and_seen_to_be_used(stub):
  made = engine(stub)
  for version, params in enumerate((weights(1), weights(2))):
    made.add([ticket(0)])
    answers(made, params, version)
  assert [path for path, _ in stub.requests].count("/collective_rpc") == 2
  assert not list(stub.directory.glob("tmp*"))


def test_a_server_that_keeps_old_weights_is_found_out(stub):
  made = engine(stub)
  made.add([ticket(0)])
  answers(made, weights(1), 0)
  stub.keeps_old = True
  made.add([ticket(1)])
  with pytest.raises(served.StaleWeights, match="keeps old weights"):
    made.step(weights(2), 1)


def test_prompts_that_old_weights_have_read_are_forgotten(stub):
  """Known prompts, also those of a sampler that was here before, get the new weights' values."""
  stub.answer("/v1/completions", completion_request(0))
  made = engine(stub, tolerance=float("inf"))  # not even the probe's doing
  for version, params in enumerate((weights(1), weights(2))):
    made.add([ticket(0)])
    for trajectory in answers(made, params, version)["train/0/0"]:
      expected = served.logprobs(CONFIG, params, ticket(0), trajectory.tokens)
      np.testing.assert_allclose(trajectory.logprobs, expected, atol=1e-4)


def test_a_server_that_keeps_what_old_weights_computed_is_noticed(stub):
  """At the first update: the probe's prompt was read by the weights before it."""
  stub.keeps_prompts = True
  made = engine(stub)
  made.add([ticket(0)])
  with pytest.raises(served.StaleWeights, match="what they computed of prompts"):
    made.step(weights(1), 0)


def test_the_probe_is_the_longest_prompt_so_far(stub):
  made = engine(stub)
  made.add([ticket(0), long := dataclasses.replace(ticket(1), prompt_tokens=np.arange(2, 9))])
  answers(made, weights(1), 0)
  made.add([ticket(2)])
  answers(made, weights(2), 1)
  probes = [body["prompt"] for path, body in stub.requests if body.get("max_tokens") == 16]
  assert probes == [long.prompt_tokens.tolist()] * 2


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_the_environments_proxy_is_not_asked(stub, monkeypatch, variable):
  monkeypatch.setenv(variable, "http://127.0.0.1:9")
  assert served.VllmServer(stub.url, WANTED, seconds=20).complete(ticket(0), number=1)


def test_weights_stay_while_anything_is_under_way(stub):
  made, first = engine(stub), weights(1)
  made.add([ticket(0)])
  loads = lambda: [path for path, _ in stub.requests].count("/collective_rpc")
  done = made.step(first, 0)
  made.add([ticket(1)])
  if not done:
    made.step(weights(2), 1)
    assert loads() == 1
  answers(made, weights(2), 1)


@pytest.mark.parametrize(
  ("mangle", "message"),
  [
    (lambda c: c | {"token_ids": None}, "got 0 token_ids"),
    (lambda c: c | {"logprobs": None}, "and 0 logprobs"),
    (
      lambda c: c | {"logprobs": {"token_logprobs": c["logprobs"]["token_logprobs"][1:]}},
      "as many",
    ),
    (
      lambda c: c | {"logprobs": {"token_logprobs": [float("nan") for _ in c["token_ids"]]}},
      "not finite",
    ),
  ],
)
def test_half_an_answer_is_refused(stub, mangle, message):
  stub.mangle = mangle
  made = engine(stub)
  made.add([ticket(0)])
  with pytest.raises(served.ServerError, match=message):
    answers(made, weights(1), 0)


def test_a_request_whose_connection_is_dropped_is_repeated(stub, monkeypatch):
  monkeypatch.setattr(served, "_PAUSES", (0.0, 0.0))
  stub.answer("/collective_rpc", {"method": "load_again"})
  server, stub.drops = served.VllmServer(stub.url, WANTED), 2
  [choice] = server.complete(ticket(0), number=1)
  assert len(stub.requests) == 3 and choice["token_ids"]
  stub.drops = 3
  with pytest.raises(served.ServerError, match="/v1/completions: "):
    server.complete(ticket(0), number=1)


def test_a_server_that_is_not_there_or_is_another_is_named(stub):
  with pytest.raises(served.ServerError, match="127.0.0.1:9/collective_rpc"):
    served.VllmServer("http://127.0.0.1:9", WANTED, seconds=2).load()
  stub.answer = lambda *_: None
  with pytest.raises(served.ServerError, match="/v1/completions: 404"):
    served.VllmServer(stub.url, WANTED).complete(ticket(0), number=1)
