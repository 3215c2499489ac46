"""The second run finds what the first one compiled, and computes the same bits."""

import pytest

from benchmarks import chaos
from tests.resume_test import deterministic, schedule_of
from tests.run_system import assert_identical, processes, train_rows

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
    with processes() as launch:
      local = launch("local", *SETTINGS, f"--run_dir={tmp_path / name}")
      output, _ = local.communicate(timeout=200)
    assert local.returncode == 0, output
    assert "persistent" not in output
    programs.append({path.name for path in (tmp_path / "cache").rglob("*-cache")})
  assert len(programs[0]) > 20 and programs[1] == programs[0]
  expected, found = tmp_path / "without", tmp_path / "with"
  assert_identical(chaos.parameters(found), chaos.parameters(expected))
  assert schedule_of(found) == schedule_of(expected)
  rows = zip(train_rows(found), train_rows(expected), strict=True)
  assert all(deterministic(a) == deterministic(b) for a, b in rows)
