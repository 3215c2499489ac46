"""The second run finds what the first one compiled, and computes the same bits."""

import pytest

from tests.run_system import assert_same_metrics, assert_same_training, run_local

SETTINGS = (
  "--config=configs/test.py",
  "--config.warm_start.steps=40",
  "--config.learner.steps=12",
  "--config.lag.mode=fixed",
  "--config.lag.max_lag=3",
)


@pytest.mark.long
def test_a_run_computes_the_same_bits_with_kept_programs_as_without(tmp_path, monkeypatch):
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  programs = []
  for name in ("without", "with"):
    assert "persistent" not in run_local(*SETTINGS, f"--run_dir={tmp_path / name}")
    programs.append({path.name for path in (tmp_path / "cache").rglob("*-cache")})
  assert len(programs[0]) > 20 and programs[1] == programs[0]
  assert_same_training(tmp_path / "with", tmp_path / "without")
  assert_same_metrics(tmp_path / "with", tmp_path / "without")
