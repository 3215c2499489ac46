"""What becomes of one process of several."""

import os

import pytest

from offpolicy_rl.config import ConfigError
from offpolicy_rl.roles import multihost
from offpolicy_rl.system.locks import Held


@pytest.mark.parametrize(
  ("error", "code", "traceback"),
  [
    (Held("--run_dir: at work"), 1, False),
    (ConfigError("seed: 5"), 2, False),
    (KeyError("x"), 1, True),
  ],
)
def test_an_error_ends_the_process_at_once_and_is_said(
  monkeypatch, capsys, caplog, error, code, traceback
):
  codes = []
  monkeypatch.setattr(os, "_exit", codes.append)
  with multihost.ending_together():
    raise error
  assert codes == [code]
  assert capsys.readouterr().err == f"offpolicy-rl learner: {error}\n"
  assert bool(caplog.records) == traceback
