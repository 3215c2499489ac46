"""A judge over HTTP: what it is asked, what counts as an answer, and servers that misbehave."""

import contextlib
import dataclasses
import http.server
import json
import logging
import socket
import threading
import time

import pytest

from offpolicy_rl import types
from offpolicy_rl.sampler import worker
from offpolicy_rl.tasks import judge, scoring, shaping
from tests.tasks.scoring_test import Bytes, ticket, trajectory

RUBRIC = json.dumps(
  {
    "clear": {"weight": 1, "criterion": "Each step follows."},
    "right": {"weight": 3, "criterion": "The number is right."},
  }
)
GOOD = {"clear": 5, "right": 10}  # 0.5 and 1.0


def completion(text: str, tokens: int | None = 40) -> bytes:
  usage = {} if tokens is None else {"usage": {"total_tokens": tokens}}
  return json.dumps({"choices": [{"message": {"content": text}}]} | usage).encode()


class Stub:
  """Answers each call with the next of `turns`, then always with the last of them.

  A turn is (status, body, headers), or a function of the handler.
  """

  def __init__(self, *turns):
    self.turns, self.asked, self.headers = list(turns), [], []
    stub = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        stub.asked.append((self.path, json.loads(body)))
        stub.headers.append(dict(self.headers))
        turn = stub.turns.pop(0) if len(stub.turns) > 1 else stub.turns[0]
        with contextlib.suppress(OSError):
          turn(self) if callable(turn) else stub.answer(self, *turn)

      def log_message(self, *_):
        pass

    self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
    self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

  @staticmethod
  def answer(handler, status: int, body: bytes, headers: dict | None = None) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
      handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def serve(monkeypatch):
  """Makes stubs; pauses are short."""
  monkeypatch.setattr(judge, "_FIRST_PAUSE", 0.001)
  stubs = []

  def start(*turns):
    stubs.append(Stub(*turns))
    return stubs[-1]

  yield start
  for stub in stubs:
    stub.server.shutdown()
    stub.server.server_close()


def settings(stub, rubric: str = RUBRIC, **changes) -> judge.Settings:
  given = {"seconds": 5.0, "retries": 3, "concurrency": 4, "answer_tokens": 64}
  limits = {"max_calls": 0, "max_tokens": 0}
  return judge.Settings(stub.url, "big", judge.rubric(rubric), **given | limits | changes)


def grade(stub, *content: str, **changes) -> dict[str, float]:
  content = content or ("2+2=", '"4"', "it is 4")
  return judge.Judge(settings(stub, **changes), "").grade(*content)


def said(text: str) -> tuple[int, bytes]:
  return 200, completion(text)


def test_one_call_asks_for_every_criterion(serve):
  stub = serve(said(f"Fine. {json.dumps(GOOD)}"))
  assert grade(stub) == {"clear": 0.5, "right": 1.0}
  [(path, asked)] = stub.asked
  assert path == "/v1/chat/completions"
  assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("big", 0, 64)
  text = asked["messages"][1]["content"]
  parts = [
    "# Question\n2+2=",
    "# Reference answer\n4",
    "# Answer\nit is 4",
    "- right: The number is",
  ]
  assert all(part in text for part in parts)
  assert "Authorization" not in stub.headers[0]


@pytest.mark.parametrize(
  "text",
  [
    "",
    "right: 10, clear: 5",
    '{"clear": 5}',
    '{"clear": 5, "right": 11}',
    '{"clear": 5, "right": true}',
    '{"clear": 5, "right": "10"}',
    '{"clear": 5, "right": 10, "more": 1}',
    '{"clear": NaN, "right": 10}',
  ],
)
def test_what_is_no_grade_is_asked_again_and_then_a_failure(serve, text):
  stub = serve(said(text), said(json.dumps(GOOD)))
  assert grade(stub) == {"clear": 0.5, "right": 1.0} and len(stub.asked) == 2
  stub = serve(said(text))
  with pytest.raises(ValueError, match=r"expected an object with numbers .* \(attempt 4\)"):
    grade(stub)
  assert len(stub.asked) == 4


def test_the_last_object_is_the_grade(serve):
  first = json.dumps({"clear": 0, "right": 0})
  assert grade(serve(said(f"A draft: {first}\nFinally: {json.dumps(GOOD)} {{}}")))["right"] == 1.0


def test_names_of_parts_may_have_braces(serve):
  rubric = json.dumps({"clear {0-10}": {"weight": 1, "criterion": "Each step follows."}})
  stub = serve(said('So: {"clear {0-10}": 7}.'))
  assert grade(stub, rubric=rubric) == {"clear {0-10}": 0.7}


def hangs_up(handler) -> None:
  handler.connection.close()


@pytest.mark.parametrize(
  "turn",
  [
    (429, b"slow down", {"Retry-After": "0.01"}),
    (429, b"later", {"Retry-After": "Mon, 30 Nov 2026 00:00:00 GMT"}),
    (500, b"oops"),
    (503, b""),
    (200, b"<html>"),
    (200, b"[]"),
    (200, b'{"choices": []}'),
    (200, completion(None)),
    (200, b"x" * (judge._MAX_ANSWER_BYTES + 9)),
    hangs_up,
  ],
  ids=lambda turn: turn.__name__ if callable(turn) else f"{turn[0]}-{turn[1][:20]}",
)
def test_a_call_that_fails_is_repeated(serve, turn):
  stub = serve(turn, said(json.dumps(GOOD)))
  assert grade(stub)["right"] == 1.0
  assert len(stub.asked) == 2


def test_an_answer_is_read_up_to_a_limit(serve, monkeypatch):
  monkeypatch.setattr(judge, "_MAX_ANSWER_BYTES", 200)
  with pytest.raises(ValueError, match="an answer of more than 200 bytes"):
    grade(serve(said(json.dumps(GOOD) + " " * 200)), retries=0)


def test_a_server_that_asks_for_time_gets_it(serve):
  stub = serve((429, b"", {"Retry-After": "0.3"}), said(json.dumps(GOOD)))
  started = time.monotonic()
  grade(stub)
  assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("before_headers", [True, False])
def test_a_server_that_drips_costs_no_more_than_its_time(serve, before_headers):
  """A byte now and then keeps every time-out of a socket."""

  def drips(handler):
    if not before_headers:
      handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(100):
      handler.wfile.write(b"H")
      time.sleep(0.05)

  started = time.monotonic()
  with pytest.raises(ValueError, match="no answer"):
    grade(serve(drips), seconds=0.3, retries=0)
  assert time.monotonic() - started < 2


def test_a_name_with_several_addresses_costs_no_more_than_its_time(serve, monkeypatch):
  """All behind a firewall that answers nothing, as a listener with a full queue."""
  resolve = socket.getaddrinfo
  monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: resolve(*a, **k)[:1] * 4)
  with contextlib.ExitStack() as stack:
    full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(4):
      waits = stack.enter_context(socket.socket())
      waits.setblocking(False)
      waits.connect_ex(full.getsockname())
    stub = serve(said(""))
    stub.url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"no answer \(TimeoutError"):
      grade(stub, seconds=0.6, retries=0)
    assert time.monotonic() - started < 1.8


def test_nobody_there_ends_the_sampler_and_is_a_failure_once_somebody_was(serve):
  """A server may be started again; an address where nobody ever was is a mistake."""
  stub = serve(said(json.dumps(GOOD)))
  asked = settings(stub, RUBRIC, retries=1)
  graded, fresh = judge.Judge(asked, ""), judge.Judge(asked, "")
  assert graded.grade("q", '"4"', "4") == {"clear": 0.5, "right": 1.0}
  stub.server.shutdown()
  stub.server.server_close()
  with pytest.raises(ValueError, match=r"no answer \(ConnectionRefusedError"):
    graded.grade("q", '"4"', "5")
  message = rf"judge.url: nobody answers at {stub.url}: no answer \(ConnectionRefusedError"
  with pytest.raises(judge.JudgeError, match=message):
    fresh.grade("q", '"4"', "5")


def test_a_request_that_is_refused_is_not_repeated(serve):
  stub = serve((400, b"too long"))
  with pytest.raises(ValueError, match="status 400: 'too long'"):
    grade(stub)
  assert len(stub.asked) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_completion_will_change_ends_the_sampler(serve, status):
  stub = serve((status, b"who are you?"))
  with pytest.raises(judge.JudgeError, match=f"judge.url: .* status {status}: 'who are you"):
    grade(stub)
  assert len(stub.asked) == 1


def test_the_same_content_is_graded_once(serve, monkeypatch):
  monkeypatch.setattr(judge, "_CACHED", 2)
  stub = serve(said(json.dumps(GOOD)))
  one = judge.Judge(settings(stub), "")
  for text in ("a", "b", "a", "c", "a", "b"):  # c drives out b, which was used longer ago than a
    one.grade("q", '"4"', text)
  assert [asked["messages"][1]["content"].count("# Answer\nb") for _, asked in stub.asked] == [
    *(0, 1, 0, 1)
  ]
  one.grade("q", '"5"', "a")
  assert len(stub.asked) == 5


def test_calls_are_limited_repetitions_included(serve):
  stub = serve((500, b""), said(json.dumps(GOOD)))
  one = judge.Judge(settings(stub, max_calls=3), "")
  one.grade("q", '"4"', "a")
  one.grade("q", '"4"', "b")
  with pytest.raises(judge.JudgeError, match="judge.max_calls: this sampler has spent 3 of 3"):
    one.grade("q", '"4"', "c")
  assert one.grade("q", '"4"', "b")["right"] == 1.0  # costs nothing
  assert len(stub.asked) == 3


@pytest.mark.parametrize("tokens", [40, None])
def test_tokens_are_limited_counted_by_the_server_or_from_bytes(serve, tokens):
  stub = serve((200, completion(json.dumps(GOOD), tokens)))
  one = judge.Judge(settings(stub, max_tokens=41), "")
  one.grade("q", '"4"', "a")
  assert one.tokens == tokens or (tokens is None and 100 < one.tokens < 400)
  if tokens:
    one.grade("q", '"4"', "b")
  with pytest.raises(judge.JudgeError, match="judge.max_tokens: this sampler has spent"):
    one.grade("q", '"4"', "c")


def test_the_key_comes_from_the_environment_or_a_file_and_shows_nowhere(
  serve, monkeypatch, tmp_path, caplog
):
  caplog.set_level(logging.DEBUG)
  monkeypatch.setenv(judge.KEY, "s3cret")
  stub = serve((500, b""))
  one = judge.Judge(settings(stub, retries=1), judge.api_key(stub.url))
  with pytest.raises(ValueError, match="status 500") as error:
    one.grade("q", '"4"', "a")
  assert stub.headers[0]["Authorization"] == "Bearer s3cret"
  assert "s3cret" not in str(error.value) + caplog.text
  (tmp_path / "key").write_text("other\n")
  monkeypatch.setenv(judge.KEY_FILE, str(tmp_path / "key"))
  assert judge.api_key("https://judge.example/v1") == "other"
  with pytest.raises(
    ValueError, match="expected https: the key of JUDGE_API_KEY would be readable"
  ):
    judge.api_key("http://judge.example/v1")
  (tmp_path / "key").write_text("a\nb")
  with pytest.raises(ValueError, match="JUDGE_API_KEY_FILE: expected printable ASCII"):
    judge.api_key(stub.url)
  monkeypatch.setenv(judge.KEY_FILE, str(tmp_path / "none"))
  with pytest.raises(ValueError, match="JUDGE_API_KEY_FILE: .*No such file"):
    judge.api_key(stub.url)


def test_a_redirection_is_not_followed(serve):
  """The key would go somewhere else."""
  other = serve(said(json.dumps(GOOD)))
  stub = serve((307, b"", {"Location": f"{other.url}/chat/completions"}))
  with pytest.raises(ValueError, match="status 307"):
    grade(stub)
  assert not other.asked


@scoring.verifier
def is_even(completion: str, answer: str) -> float:
  if completion == "crash":
    raise RuntimeError("no")
  return float(int(completion) % 2 == 0)


def judged(stub, rubric: str, texts: list[str]) -> list[scoring.Judgement]:
  made = settings(stub, rubric, retries=0)
  with scoring.Scorer("tests.tasks.judge_test:is_even", workers=1, time_limit=5) as scorer:
    scored = judge.JudgedScorer(judge.Judge(made, ""), made, scorer)
    with contextlib.closing(scored):
      return scored.judgements(scored.submit(texts, '"4"', "q"))


def test_the_reward_is_the_weighted_mean_and_failures_count(serve):
  """0.5 of weight 1, 1.0 of weight 3, and the verifier's verdict of weight 4."""
  both = json.dumps(json.loads(RUBRIC) | {"verifier": {"weight": 4}})

  def by_answer(handler):
    text = stub.asked[-1][1]["messages"][1]["content"]
    Stub.answer(handler, 500 if "# Answer\n6" in text else 200, completion(json.dumps(GOOD)))

  stub = serve(by_answer)
  found = judged(stub, both, ["4"])
  assert found == [scoring.Judgement((0.5 + 3.0 + 4.0) / 8, True, False, (0.5, 1.0, 1.0))]
  [fails] = judged(stub, both, ["6"])
  assert (fails.reward, fails.failed, fails.parts) == (0.0, True, ())
  [crash] = judged(stub, both, ["crash"])
  assert (crash.reward, crash.failed) == (0.0, True)
  [judge_only] = judged(stub, RUBRIC, ["crash"])  # whose verifier has no say
  assert (judge_only.reward, judge_only.failed) == (3.5 / 4, False)
  rewards = shaping.rewards([*found, fails], [1, 1], shaping.Shaping(failed=shaping.MEAN))
  assert rewards == [found[0].reward] * 2


def test_a_conversation_is_graded_as_the_policy_saw_it_in_the_end(serve):
  """Whose environment's reward is the part "verifier"; a failed one is not graded."""
  both = json.dumps(json.loads(RUBRIC) | {"verifier": {"weight": 4}})
  stub = serve(said(json.dumps(GOOD)))
  played = dataclasses.replace(ticket(types.TRAIN, "Which?"), environment="a:World")
  rewritten = dataclasses.replace(
    trajectory("hm 3, no, 5"), reward=0.5, ended=types.DONE, rewinds=(types.Rewind(6, 3),)
  )
  failed = dataclasses.replace(trajectory("7"), reward=0.0, ended=types.FAILED)
  made = settings(stub, both, retries=0)
  with contextlib.closing(judge.JudgedScorer(judge.Judge(made, ""), made, None)) as scorer:
    [group] = worker.score_groups(scorer, Bytes(), [played], [[failed, rewritten]])
  [[_, asked]] = stub.asked
  assert "# Question\nWhich?\n" in asked["messages"][1]["content"]
  assert "# Answer\nhm no, 5\n" in asked["messages"][1]["content"]
  assert [t.parts for t in group.trajectories] == [(), (0.5, 1.0, 0.5)]
  assert [t.verdict for t in group.trajectories] == [0.0, (0.5 + 3.0 + 4 * 0.5) / 8]
  assert group.verifier_failures == 1


def test_without_a_criterion_nobody_is_called(serve):
  stub = serve(said(""))
  [even, odd] = judged(stub, '{"verifier": {"weight": 2}}', ["4", "3"])
  assert (even.reward, odd.reward, even.parts) == (1.0, 0.0, (1.0,))
  assert not stub.asked


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("[]", r"an object like .*, got '\[\]'"),
    ("{", "an object like"),
    ('{"a": 1}', "'a' has 1, expected"),
    ('{"a": {"weight": 1}}', "'a' has .*, expected .'criterion', 'weight'"),
    ('{"verifier": {"weight": 1, "criterion": "x"}}', "expected .'weight'."),
    ('{"a": {"weight": 0, "criterion": "x"}}', "weights above 0; 'a' has 0"),
    ('{"a": {"weight": true, "criterion": "x"}}', "weights above 0"),
    ('{"a": {"weight": 1, "criterion": " "}}', "criteria that are texts"),
  ],
)
def test_a_rubric_of_another_form_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    judge.rubric(text)


@pytest.mark.parametrize(
  ("url", "good"),
  [
    ("", True),
    ("http://localhost:8000/v1", True),
    ("https://judge.example", True),
    ("localhost:8000", False),
    ("ftp://judge.example", False),
    ("http://user:key@judge.example", False),
    ("http://judge.example/v1?key=1", False),
    ("http://judge.example:99999", False),
    ("http://", False),
    ("http://judge.example/\r\nX: y", False),
  ],
)
def test_addresses(url, good):
  assert judge.is_url(url) == good
