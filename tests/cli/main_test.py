"""How commands end."""

import pytest

from offpolicy_rl.cli import main


def test_a_key_without_its_value_is_an_error(capsys):
  """It would be an empty text, and the value an argument of its own."""
  with pytest.raises(SystemExit) as end:
    main.main(["check", "--config=configs/test.py", "--config.task.name", "sums"])
  expected = "--config.task.name: got no value, expected --config.task.name=VALUE\n"
  assert end.value.code == 2 and capsys.readouterr().err.endswith(expected)


@pytest.mark.parametrize(
  ("given", "missing"),
  [
    (["local", "--config=configs/test.py", "--tls_ca=ca.crt"], "tls_cert"),
    (["local", "--config=configs/test.py", "--tls_server_name=learner"], "tls_cert"),
    (["learner", "--config=configs/test.py", "--num_processes=2"], "coordinator"),
    (["learner", "--config=configs/test.py", "--process_id=0"], "coordinator"),
    (["sampler", "--learner=127.0.0.1:1", "--vllm_dir=models/mine"], "vllm"),
    (["explain", "--objective=oapl", "--png=target.png"], "rewards"),
  ],
)
def test_a_flag_that_would_do_nothing_is_refused(monkeypatch, capsys, given, missing):
  """Each process of a learner would train for itself; a sampler would not use its vLLM server."""
  monkeypatch.setitem(main._COMMANDS, given[0], lambda flags, assignments: 0)
  flag, _, value = given[-1].partition("=")
  assert main.main(given) == 2
  expected = f"offpolicy-rl {given[0]}: {flag}: got {value!r}, expected --{missing} beside it\n"
  assert capsys.readouterr().err.startswith(expected)


def test_the_file_of_a_plan_is_checked_before_anything_is_compiled(monkeypatch, capsys, tmp_path):
  from offpolicy_rl.planning import topology

  (tmp_path / "file").touch()
  compiled = []
  monkeypatch.setattr(topology, "prepare_environment", lambda: compiled.append(1))
  card, to = "configs/gsm8k_qwen3_8b.py", tmp_path / "file" / "plan.json"
  assert main.main(["plan", f"--config={card}", "--topology=v5e:4x4", f"--json={to}"]) == 1
  assert str(tmp_path / "file") in capsys.readouterr().err and not compiled


def of_closing(*_):
  try:
    raise RuntimeError("step 7: loss nan; first in row 3")
  finally:
    raise OSError("ledger.json: no space left")


def of_another_kind(*_):
  try:
    raise KeyError("a key of ours")
  except KeyError:
    raise ValueError("--key: missing, expected a name") from None


@pytest.mark.parametrize(
  ("command", "told"),
  [
    (of_closing, "ledger.json: no space left\n  after: step 7: loss nan; first in row 3\n"),
    (of_another_kind, "--key: missing, expected a name\n"),
  ],
)
def test_an_error_of_closing_does_not_hide_what_went_wrong(monkeypatch, capsys, command, told):
  monkeypatch.setitem(main._COMMANDS, "keys", command)
  assert main.main(["keys"]) == 1
  assert capsys.readouterr().err == f"offpolicy-rl keys: {told}"
