"""Compiled programs are kept where they should be, and never stop a run."""

import os
import pathlib
import subprocess
import sys

import pytest

from offpolicy_rl.system import compiled
from tests.conftest import ROOT

NAMES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")

# Compiles two programs; prints how many came from the cache, and a result.
COMPILE = """
import resource, sys
from offpolicy_rl.system import compiled
compiled.set_up(keep=True)
if sys.argv[1:]:  # the disk is full after so many bytes of a file
  resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
import jax, jax.monitoring, numpy as np
hits = []
jax.monitoring.register_event_listener(
  lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
)
def twice(x): return (x * 2).sum()
def square(x): return x @ x
x = np.arange(16, dtype=np.float32)
print(jax.jit(twice)(x), jax.jit(square)(x), len(hits))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
  """A user's cache directory, and no settings of the tests'."""
  for name in NAMES:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  return tmp_path


def chosen() -> str | None:
  return os.environ.get("JAX_COMPILATION_CACHE_DIR")


def test_the_directory_is_the_users_own(home):
  compiled.set_up(keep=True)
  directory = pathlib.Path(chosen())
  assert directory.parent == home / "offpolicy-rl" / "compiled" and directory.is_dir()
  assert f"{len(os.sched_getaffinity(0))}-cores" in directory.name
  assert (home / "offpolicy-rl").stat().st_mode & 0o022 == 0


def test_a_directory_that_the_environment_names_wins(home, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/compiled")
  compiled.set_up(keep=True)
  assert chosen() == "gs://bucket/compiled" and not list(home.iterdir())


def test_nothing_is_kept_if_that_is_not_wanted_or_there_is_no_room(home, monkeypatch):
  compiled.set_up(keep=False)
  assert os.environ.pop("JAX_ENABLE_COMPILATION_CACHE") == "false" and not list(home.iterdir())
  (home / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
  compiled.set_up(keep=True)
  monkeypatch.setattr(os, "getuid", lambda: 12345)  # a directory of someone else
  monkeypatch.setenv("XDG_CACHE_HOME", str(home))
  compiled.set_up(keep=True)
  assert chosen() is None


def test_what_was_unused_for_longest_goes_first(tmp_path):
  for age, name in enumerate(("new", "older", "oldest")):
    (tmp_path / "release").mkdir(exist_ok=True)
    (tmp_path / "release" / name).write_bytes(bytes(100))
    os.utime(tmp_path / "release" / name, (1e9 - age, 1e9 - age))
  compiled._shrink(tmp_path, max_bytes=200)
  assert sorted(path.name for path in tmp_path.glob("*/*")) == ["new", "older"]
  compiled._shrink(tmp_path / "absent", max_bytes=0)


def run(*arguments: str) -> tuple[str, str]:
  """(what it printed, its complaints)"""
  done = subprocess.run(
    [sys.executable, "-c", COMPILE, *arguments],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  return done.stdout.strip(), done.stderr


@pytest.mark.long
def test_damage_is_mended_without_a_word(home):
  """Half-written on a full disk, then damaged where nobody notices before reading."""
  assert run("500") == ("240.0 1240.0 0", "")
  assert not list(home.rglob("*-cache")), "half of a program stays for ever"
  assert run() == ("240.0 1240.0 0", "")
  [first], [_] = home.rglob("jit_twice-*-cache"), home.rglob("jit_square-*-cache")
  size = first.stat().st_size
  first.write_bytes(first.read_bytes()[:-9])
  assert run() == ("240.0 1240.0 1", "")
  assert first.stat().st_size == size
