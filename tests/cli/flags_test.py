"""Flags: what they take, and one clear line for what they do not."""

import argparse

import pytest

from offpolicy_rl.cli import flags, main

PEERS = [
  "127.0.0.1:1",
  "learner.example:50051",
  "localhost:65535",
  "[::1]:50051",
  "my_host-1.local.:80",
  "[2001:db8::1]:443",
  "[fe80::1%eth0]:80",
]
NO_PORTS = [
  "127.0.0.1:65536",
  "127.0.0.1:70000",
  "127.0.0.1:-1",
  "127.0.0.1:",
  "127.0.0.1",
  "127.0.0.1:http",
  "127.0.0.1:+80",
  "127.0.0.1: 80",
  "127.0.0.1:8e3",
  "127.0.0.1:80.0",
  "127.0.0.1:\u0668\u0660",
  "127.0.0.1:99999999999999999999",
  "127.0.0.1:0x50",
  "127.0.0.1:80 ",
  "127.0.0.1:8_0",
]
NO_HOSTS = [
  "",
  ":",
  ":80",
  ":0",
  "::1:80",
  "[::1:80",
  "::1]:80",
  "[::g]:80",
  "[]:80",
  "[127.0.0.1]:80",
  "127.0.0.300:80",
  "1.2.3:80",
  "unix:/tmp/socket",
  "unix:///tmp/socket:80",
  "dns:///host:80",
  "http://host:80",
  "two hosts:80",
  "host/path:80",
  "user@host:80",
  "-host:80",
  "h\u00f6st:80",
  "a,b:80",
  "host:80:81",
]


@pytest.mark.parametrize("text", PEERS)
def test_addresses(text):
  assert flags.peer(text) == flags.listen(text) == flags.coordinator(text) == text


@pytest.mark.parametrize("text", [*NO_PORTS, *NO_HOSTS])
def test_what_is_no_address(text):
  for check in (flags.peer, flags.coordinator, flags.listen):
    with pytest.raises(argparse.ArgumentTypeError, match="^got .* expected HOST:PORT such as"):
      check(text)


def test_port_0_is_for_those_who_listen():
  for text in ("127.0.0.1:0", "[::]:0", "localhost:0"):
    assert flags.listen(text) == text
    with pytest.raises(argparse.ArgumentTypeError, match="the port from 1 to 65535"):
      flags.peer(text)
  assert flags.coordinator("auto") == "auto"


@pytest.mark.parametrize("text", ["http://127.0.0.1:8000", "https://a.example", "http://[::1]:80/"])
def test_urls(text):
  assert flags.url(text) == text


@pytest.mark.parametrize(
  "text",
  [
    "127.0.0.1:8000",
    "http://",
    "http://a:70000",
    "http://a:0",
    "ftp://a",
    "http://[::1",
    "http:/a",
    "http://a:b",
    "unix:/a",
    "",
    "http://a b",
  ],
)
def test_what_is_no_url(text):
  with pytest.raises(argparse.ArgumentTypeError, match="expected http://HOST:PORT or https:"):
    flags.url(text)
  with pytest.raises(argparse.ArgumentTypeError, match="expected http://HOST:PORT$"):
    flags.proxy(text)


LEARNER, SAMPLER = ["learner", "--config=configs/test.py"], ["sampler", "--learner=a:1"]
LOCAL = ["local", "--config=configs/test.py"]
NO_NUMBERS = ["nan", "inf", "-inf", "-1", "-0.1", "1e999", "a", ""]
NO_COUNTS = ["0", "-1", "1.5", "nan", "", "1e3"]
FLAGS = [
  (LEARNER, "listen", ["127.0.0.1:65536", "unix:/tmp/s", "127.0.0.1", ":0"]),
  (LOCAL, "listen", ["127.0.0.1:65536"]),
  (LEARNER, "metrics_port", ["65536", "-1", "1.5", "http", ""]),
  (LEARNER, "coordinator", ["a:0", "a:65536", "a", "automatic"]),
  (LEARNER, "num_processes", NO_COUNTS),
  (LEARNER, "process_id", ["-1", "1.5", ""]),
  (LOCAL, "samplers", NO_COUNTS),
  (["sampler"], "learner", ["a:0", "a:65536", "a", ":5"]),
  (SAMPLER, "patience", NO_NUMBERS),
  (SAMPLER, "proxy", ["a:80", "https://a:80", "http://a:65536", ""]),
  (SAMPLER, "metrics_port", ["65536"]),
  (SAMPLER, "vllm", ["a:80", "http://a:65536"]),
  (SAMPLER, "vllm_tolerance", NO_NUMBERS),
  (["watch", "a:1"], "patience", NO_NUMBERS),
  (["watch", "a:1"], "proxy", ["a:80"]),
  (["eval", "--checkpoint=a"], "temperature", ["0", *NO_NUMBERS]),
  (["eval", "--checkpoint=a"], "samples", NO_COUNTS),
  (["eval", "--checkpoint=a"], "problems", NO_COUNTS),
  (["sweep"], "parallel", NO_COUNTS),
  (["sweep"], "samplers", NO_COUNTS),
  (["explain"], "beta", ["0", *NO_NUMBERS]),
]


@pytest.mark.parametrize(("others", "flag", "values"), FLAGS)
def test_every_flag_of_a_kind_is_checked(capsys, others, flag, values):
  for value in values:
    with pytest.raises(SystemExit) as ended:
      main.main([*others, f"--{flag}={value}"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(f"offpolicy-rl {others[0]}: --{flag}: got {value!r}, expected ")
    assert said.count("\n") == 1


def test_no_flag_takes_any_float_or_address():
  """A new one has to say what it takes, too."""
  parser = flags.parser("")
  [roles] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
  for role, sub in roles.choices.items():
    for action in sub._actions:
      assert action.type is not float, (role, action.dest)
      named = action.dest.endswith("port") or "HOST:PORT" in (action.metavar or "")
      assert not named or action.type is not None or action.dest == "run", (role, action.dest)


@pytest.mark.parametrize("run", ["127.0.0.1:0", "127.0.0.1:65536", "nowhere", "a:b", ":5", "::1:5"])
def test_watch_takes_a_directory_or_an_address(capsys, run):
  assert main.main(["watch", run, "--once"]) == 2
  assert f"RUN: got {run!r}, expected a directory with the config.json" in capsys.readouterr().err


@pytest.mark.parametrize("rewards", ["nan", "0,inf", "0,,1", "a", "1,-inf"])
def test_rewards_are_finite_numbers(capsys, rewards):
  assert main.main(["explain", f"--rewards={rewards}"]) == 2
  assert f"--rewards: got {rewards!r}, expected numbers such as" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "keep"), [([], True), (["--no_cache"], False)])
def test_programs_are_kept_unless_told_otherwise(monkeypatch, more, keep):
  """`compiled_test.py` sees what becomes of it; the processes of `local` inherit it."""
  asked = []
  monkeypatch.setattr(main.compiled, "set_up", lambda *, keep: asked.append(keep))
  monkeypatch.setitem(main._COMMANDS, "eval", lambda flags, assignments: 0)
  assert main.main(["eval", "--checkpoint=a", *more]) == 0 and asked == [keep]
