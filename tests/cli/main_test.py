"""How commands end."""

import pytest

from offpolicy_rl.cli import main


def test_a_key_without_its_value_is_an_error(capsys):
  """It would be an empty text, and the value an argument of its own."""
  with pytest.raises(SystemExit) as end:
    main.main(["check", "--config=configs/test.py", "--config.task.name", "sums"])
  expected = "--config.task.name: got no value, expected --config.task.name=VALUE\n"
  assert end.value.code == 2 and capsys.readouterr().err.endswith(expected)


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
