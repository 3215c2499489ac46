"""`offpolicy-rl serve`: a run and a published checkpoint, asked over HTTP."""

import http.client
import json
import signal
import threading
from urllib.parse import urlsplit

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl.cli import flags as flags_lib
from offpolicy_rl.cli import main
from offpolicy_rl.config import evaluation
from offpolicy_rl.roles import build, serve
from offpolicy_rl.tasks import tokenizer
from tests.chat_api.server_test import ask
from tests.roles.evaluate_test import published, run_dir  # noqa: F401 (fixtures)
from tests.run_system import start, wait_for

SIZES = ("--slots=2", "--context=64")


def configuration(*arguments: str, assignments=()):
  flags = flags_lib.parser("").parse_args(["serve", *arguments])
  return evaluation.for_chats(flags, list(assignments))


def served(capsys, config, weights_of=None) -> tuple[str, str]:
  """Asks for answers as a client; returns them, joined, and what was printed."""
  stop, found = threading.Event(), []

  def client():
    shown = []
    try:
      wait_for(
        lambda: shown.append(capsys.readouterr().out) or "Ctrl-C" in "".join(shown), 60, "it"
      )
      url = "".join(shown).split("serving tiny at ")[1].split("/v1")[0]
      asked = {"model": "tiny", "max_tokens": 5, "n": 2, "seed": 1, "messages": [MESSAGE]}
      found.extend([*ask(http.client.HTTPConnection(urlsplit(url).netloc), asked, PATH), shown])
    finally:
      stop.set()

  thread = threading.Thread(target=client)
  thread.start()
  serve.run(
    config,
    run_dir=weights_of,
    listen="127.0.0.1:0",
    name="tiny",
    slots=2,
    context=64,
    key="",
    stop=stop,
  )
  thread.join()
  status, body, shown = found
  assert status == 200, body
  texts = [choice["message"]["content"] for choice in json.loads(body)["choices"]]
  return "".join(texts), "".join(shown)


PATH = "/v1/chat/completions"
MESSAGE = {"role": "user", "content": "3+4="}


def test_a_run(run_dir, capsys):  # noqa: F811
  text, shown = served(capsys, configuration(f"--run_dir={run_dir}"), run_dir)
  assert text and set(text) <= {"7", "8"}
  assert "weights of step 3" in shown and "no chat template" in shown


@pytest.mark.long
def test_a_published_checkpoint(published, capsys):  # noqa: F811
  text, shown = served(capsys, configuration(f"--checkpoint={published}"))
  assert text and set(text) <= {"7", "8"}
  assert "prompt and answer: 64 tokens; 2 answers at a time" in shown


def test_what_is_wrong_is_said_before_anything_starts(run_dir, tmp_path, capsys):  # noqa: F811
  open_key = tmp_path / "key"
  open_key.write_text("short")
  for arguments, said in (
    ([], "--checkpoint, --run_dir: expected one"),
    ([f"--run_dir={tmp_path}"], "--run_dir: "),
    ([f"--checkpoint={tmp_path}"], "--checkpoint: "),
    ([f"--run_dir={run_dir}", "--listen=0.0.0.0:0"], "--listen: got '0.0.0.0:0', expected"),
    ([f"--run_dir={run_dir}", f"--token_file={open_key}"], "--token_file: got 5 bytes"),
    ([f"--run_dir={run_dir}", "--config.model.width=8"], "model.width: got 8"),
    ([f"--run_dir={run_dir}", "--config.sampler.top_p=2"], "sampler.top_p: got 2"),
  ):
    assert main.main(["serve", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_context_of_a_few_tokens_is_refused(run_dir, capsys):  # noqa: F811
  assert main.main(["serve", f"--run_dir={run_dir}", "--context=9"]) == 1
  assert "--context: got 9, expected at least 16" in capsys.readouterr().err


def test_environments_are_left_to_clients(run_dir):  # noqa: F811
  name = ("environment.name", "offpolicy_rl.environments.guess:GuessTheNumber")
  config = configuration(f"--run_dir={run_dir}", assignments=[name])
  assert config_lib.environments(config) == {}
  with pytest.raises(config_lib.ConfigError, match=r"task.name"):
    configuration(f"--run_dir={run_dir}", assignments=[("task.name", "gsm8k")])


def test_no_environment_offers_tools_beside_those_of_clients(published):  # noqa: F811
  name = ("environment.name", "offpolicy_rl.environments.calculator:Calculator")
  config = configuration(f"--checkpoint={published}", assignments=[name])
  build.fill_in(config, tokenizer.read_files(published))
  assert not config.environment.tools


@pytest.mark.long
def test_ctrl_c_ends_it_with_clients_waiting(run_dir):  # noqa: F811
  process = start("serve", f"--run_dir={run_dir}", "--listen=127.0.0.1:0", *SIZES)
  line = next(line for line in process.stdout if "Ctrl-C" in line)
  address = urlsplit(line.split(" at ")[1].split("/v1")[0]).netloc
  body = {"model": "run", "messages": [MESSAGE], "n": 2, "stream": True}
  texts = []
  one = lambda: texts.append(ask(http.client.HTTPConnection(address), body, PATH)[1])
  clients = [threading.Thread(target=one) for _ in range(6)]
  for client in clients:
    client.start()
  process.send_signal(signal.SIGINT)
  assert process.wait(20) == 0
  for client in clients:
    client.join()
  assert all(text.endswith("data: [DONE]\n\n") or "ending" in text for text in texts)
