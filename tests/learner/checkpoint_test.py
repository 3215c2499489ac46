"""Checkpoints: what was saved comes back, into its sharding; half a checkpoint is none."""

import contextlib
import json
import subprocess

import jax
import numpy as np
import pytest

from offpolicy_rl import losses
from offpolicy_rl.learner import checkpoint, step
from offpolicy_rl.learner import state as state_lib
from offpolicy_rl.model import sharding
from tests.learner.step_test import OPTIMIZER, choices, first_state, random_batch
from tests.model.decoder_test import CONFIG


def equal(a, b) -> bool:
  return jax.tree.all(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b))


def host(tree):
  return jax.tree.map(np.array, tree)


@pytest.fixture
def mesh():
  return sharding.make_mesh(2, 2, 2)


@pytest.fixture
def shardings(mesh):
  return state_lib.shardings(CONFIG, mesh, OPTIMIZER)


@pytest.fixture
def state(mesh):
  return first_state(mesh)


SHAPES = state_lib.shapes(CONFIG, OPTIMIZER)


class Kept(checkpoint.Checkpoints):
  """Checkpoints whose words are kept."""

  def __init__(self, directory, *, keep=2):
    self.said, self.commits = [], []
    super().__init__(directory, keep=keep, say=self.said.append, committed=self.commits.append)

  def save_simply(self, number, state, **position):
    self.save(number, state, versions={}, position=position)
    self.wait()

  def restore_newest(self, shardings):
    step = self.newest()
    return None if step is None else self.restore(step, SHAPES, shardings)


def folder(tmp_path, number):
  return tmp_path / "steps" / str(number)


@pytest.mark.parametrize("devices", [1, 2])
def test_what_the_host_looks_at_stays_when_its_array_is_donated(devices):
  """On CPU a saved or published array is read in place, while the next step reuses donated ones."""
  mesh = sharding.make_mesh(fsdp=devices, devices=jax.devices()[:devices])
  split = jax.sharding.NamedSharding(mesh, sharding.spec("embed"))
  made = jax.block_until_ready(jax.device_put(np.arange(4096.0, dtype=np.float32), split) + 0)
  views = [np.asarray(shard.data) for shard in made.addressable_shards]
  before = [view.copy() for view in views]
  jax.block_until_ready(jax.jit(lambda x: x - 1, donate_argnums=0)(made))
  for view, expected in zip(views, before, strict=True):
    np.testing.assert_array_equal(view, expected)


def test_training_goes_on_from_a_checkpoint_as_if_never_stopped(
  tmp_path, mesh, shardings, state, monkeypatch
):
  """Saves while training goes on with donated buffers; the restored run repeats the rest."""
  monkeypatch.setattr(losses.Objective, "metrics", lambda *_: {})  # a third of what is compiled
  saved = Kept(tmp_path)
  with jax.sharding.set_mesh(mesh):
    compiled = step.compile_step(choices(), shardings)
    for i in range(6):
      if i == 3:
        saved.save(3, state, versions={}, position={})
        at_three = host(state)
      state, _ = compiled(state, state_lib.place_batch(mesh, random_batch(seed=i)), None)
    saved.close()
    restored = Kept(tmp_path).restore_newest(shardings)
    assert restored.step == 3
    assert equal(host(restored.state), at_three)
    same = lambda x, s: x.sharding.is_equivalent_to(s, x.ndim)
    assert jax.tree.all(jax.tree.map(same, restored.state, shardings))
    again = restored.state
    for i in range(3, 6):
      again, _ = compiled(again, state_lib.place_batch(mesh, random_batch(seed=i)), None)
    assert equal(host(again), host(state))


def test_position_and_older_versions_come_back(tmp_path, shardings, state):
  saved = Kept(tmp_path)
  tensors = {"a/b": np.arange(6.0, dtype=np.float32).reshape(2, 3), "c": np.ones(2, np.float32)}
  older = {-1: tensors, 7: {name: x + 1 for name, x in tensors.items()}}
  saved.save(9, state, versions=older, position={"files": {"metrics": 12}})
  saved.close()
  restored = Kept(tmp_path).restore_newest(shardings)
  assert restored.position["files"] == {"metrics": 12}
  assert restored.versions.keys() == older.keys()
  for version, expected in older.items():
    assert restored.versions[version].keys() == expected.keys()
    assert equal(restored.versions[version], expected)


@pytest.mark.parametrize("name", ["a[b]c", "a*b?c", "a\nb ü #1%20{x}"])
def test_whatever_the_directory_is_called(tmp_path, mesh, shardings, state, name):
  """Orbax takes a path for a pattern, and wrote what can't be read."""
  saved = Kept(tmp_path / name)
  saved.save_simply(3, state)
  saved.save_initial(state.params)
  again = Kept(tmp_path / name)
  assert equal(again.restore_newest(shardings).state, state)
  assert equal(again.restore_initial(SHAPES.params, shardings.params), state.params)
  step, params = checkpoint.newest_params(tmp_path / name, SHAPES.params)
  assert step == 3 and equal(params, state.params) and saved.said == []


def test_a_reader_takes_the_next_one_when_the_run_removes_what_it_reads(
  tmp_path, mesh, state, monkeypatch
):
  saved = Kept(tmp_path, keep=1)
  saved.save_simply(3, state)
  check, looked = checkpoint._verified_position, []

  def check_slowly(at):
    if not looked:  # meanwhile, the run goes on
      saved.save_simply(4, state)
    looked.append(at.name)
    return check(at)

  monkeypatch.setattr(checkpoint, "_verified_position", check_slowly)
  number, params = checkpoint.newest_params(tmp_path, SHAPES.params)
  assert (number, looked) == (4, ["3", "4"]) and equal(params, state.params)


def test_a_checkpoint_of_another_model_is_refused_by_its_name(tmp_path, state, shardings, capfd):
  saved = Kept(tmp_path)
  saved.save_simply(3, state)
  wrong = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape, 3), x.dtype), SHAPES.params)
  message = r"blocks/attention_norm: got \((.*)\), expected \(\1, 3\) by the run's config.json"
  with pytest.raises(checkpoint.CheckpointError, match=f"steps/3/state: {message}"):
    checkpoint.newest_params(tmp_path, wrong)
  with pytest.raises(checkpoint.CheckpointError, match=f"steps/3/state: {message}"):
    Kept(tmp_path).restore(3, SHAPES._replace(params=wrong), shardings)
  saved.save_initial(state.params)
  with pytest.raises(checkpoint.CheckpointError, match=f"initial: {message}"):
    saved.restore_initial(wrong, shardings.params)
  assert capfd.readouterr().err == ""


def test_only_the_newest_are_kept(tmp_path, state):
  saved = Kept(tmp_path)
  for number in (1, 2, 3, 4):
    saved.save_simply(number, state)
  saved.close()
  assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["3", "4"]
  assert saved.commits == [[1], [1, 2], [2, 3], [3, 4]]


def test_what_killed_processes_left_of_older_ones_goes_too(tmp_path, state):
  """They were killed between removing or writing a commit and the rest of the directory."""
  saved = Kept(tmp_path)
  for name in ("1", "2.orbax-checkpoint-tmp", "3.damaged", "7"):
    (folder(tmp_path, name) / "state").mkdir(parents=True)
  for number in (4, 5, 6):
    saved.save_simply(number, state)
  saved.close()
  assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["3.damaged", "5", "6", "7"]


def flip_a_byte(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


DAMAGE = {
  "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, expected"),
  "changed": (flip_a_byte, "its sha256 is not the one of the commit"),
  "missing": (lambda path: path.unlink(), "missing, expected"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("which", ["first", "largest"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_used(
  tmp_path, shardings, state, damage, which
):
  saved = Kept(tmp_path)
  saved.save_simply(1, state, place="one")
  saved.save_simply(2, state, place="two")
  saved.close()
  files = sorted(p for p in folder(tmp_path, 2).rglob("*") if p.is_file() and p.stat().st_size)
  files = [p for p in files if p.name != "commit.json"]
  victim = files[0] if which == "first" else max(files, key=lambda p: p.stat().st_size)
  harm, message = DAMAGE[damage]
  harm(victim)
  reopened = Kept(tmp_path)
  restored = reopened.restore_newest(shardings)
  assert (restored.step, restored.position["place"]) == (1, "one")
  assert str(victim) in reopened.said[0] and message in reopened.said[0]
  assert folder(tmp_path, "2.damaged").exists()  # for whoever wants to look
  reopened.save_simply(2, state, place="two again")
  assert reopened.steps() == [1, 2]


def test_the_same_step_may_be_damaged_twice(tmp_path, shardings, state):
  for _ in range(2):
    saved = Kept(tmp_path)
    saved.save_simply(1, state)
    saved.save_simply(2, state)
    saved.close()
    (folder(tmp_path, 2) / "commit.json").write_text("{")
    assert Kept(tmp_path).restore_newest(shardings).step == 1


def test_trouble_with_tidying_up_does_not_cost_the_new_checkpoint(tmp_path, shardings, state):
  saved = Kept(tmp_path, keep=1)
  saved.save_simply(1, state)
  saved._committed = lambda steps: (_ for _ in ()).throw(OSError("disk full"))
  saved.save_simply(2, state)
  saved.close()
  assert saved.steps() == [2] and "step 2, removing what is old: OSError" in saved.said[0]
  assert Kept(tmp_path).restore_newest(shardings).step == 2


def test_when_every_checkpoint_is_damaged_nothing_is_begun_anew(tmp_path, shardings, state):
  saved = Kept(tmp_path)
  saved.save_simply(1, state)
  saved.close()
  (folder(tmp_path, 1) / "commit.json").write_text("{")
  with pytest.raises(checkpoint.CheckpointError, match=r"every checkpoint of \[1\] is damaged"):
    Kept(tmp_path).restore_newest(shardings)


def test_nor_the_next_time(tmp_path, shardings, state):
  """They are moved aside by then."""
  Kept(tmp_path).save_simply(1, state)
  flip_a_byte(next((folder(tmp_path, 1) / "state").rglob("manifest.ocdbt")))
  for _ in range(3):
    with pytest.raises(checkpoint.CheckpointError, match=r"of \[1\] is damaged; .*--restart"):
      Kept(tmp_path).newest()


def test_a_run_whose_checkpoints_all_lack_their_commit_is_not_begun_anew(tmp_path, state):
  saved = Kept(tmp_path)
  for number in (0, 4):
    saved.save_simply(number, state)
    (folder(tmp_path, number) / "commit.json").unlink()
    if not number:
      assert Kept(tmp_path).newest() is None  # killed before the first one was complete
  with pytest.raises(checkpoint.CheckpointError, match=r"of \[4\] lacks its .*--restart"):
    Kept(tmp_path).newest()


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    ("{", "commit.json: got JSONDecodeError: .*, expected an object with position and files"),
    ('{"position": {}}', "commit.json: got KeyError: 'files', expected an object"),
    (None, r"steps: every checkpoint of \[4\] lacks its commit.json"),
  ],
)
def test_a_reader_says_what_is_wrong_with_what_is_there(tmp_path, state, damage, message):
  Kept(tmp_path).save_simply(4, state)
  commit = folder(tmp_path, 4) / "commit.json"
  commit.write_text(damage) if damage else commit.unlink()
  with pytest.raises(checkpoint.CheckpointError, match=message):
    checkpoint.newest_params(tmp_path, SHAPES.params)
  if damage:
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
      Kept(tmp_path).newest()  # moves it aside
    with pytest.raises(checkpoint.CheckpointError, match=r"every checkpoint of \[4\] is damaged"):
      checkpoint.newest_params(tmp_path, SHAPES.params)


def test_the_position_of_a_checkpoint_may_be_amended(tmp_path, shardings, state):
  """What is written after the last checkpoint of a run is kept by whoever goes on from there."""
  saved = Kept(tmp_path)
  saved.save_simply(3, state, files={"metrics": 10}, evaluations=[])
  saved.amend(3, {"files": {"metrics": 20}, "done": True})
  saved.amend(4, {"files": {}})  # could not be written
  found = Kept(tmp_path).restore_newest(shardings)
  assert found.position["files"] == {"metrics": 20} and found.position["evaluations"] == []
  assert found.done and equal(found.state, state) and Kept(tmp_path).steps() == [3]


def test_an_uncommitted_checkpoint_does_not_count(tmp_path, shardings, state):
  saved = Kept(tmp_path)
  saved.save_simply(5, state)
  saved.save_simply(6, state)
  (folder(tmp_path, 6) / "commit.json").unlink()  # what a crash just before the commit leaves
  (tmp_path / "steps" / "9.orbax-checkpoint-tmp").mkdir()
  saved.close()
  reopened = Kept(tmp_path)
  assert reopened.steps() == [5]
  assert reopened.restore_newest(shardings).step == 5
  reopened.save_simply(6, state)
  assert reopened.steps() == [5, 6]


@contextlib.contextmanager
def small_disk(path, megabytes: int):
  path.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
  if subprocess.run(mount, capture_output=True).returncode != 0:
    pytest.skip("no permission to mount a small disk")
  try:
    yield
  finally:
    subprocess.run(["umount", "-l", str(path)], check=True)


# Orbax's own writing threads end with the error that it then hands to us as well.
@pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnhandledThreadExceptionWarning",
  "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_a_full_disk_is_said_and_the_checkpoint_before_stays(tmp_path, shardings, state):
  with small_disk(tmp_path / "disk", megabytes=4):
    saved = Kept(tmp_path / "disk")
    saved.save_simply(1, state)
    assert saved.steps() == [1]
    ballast = tmp_path / "disk" / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
      while True:
        file.write(bytes(10_000))
        file.flush()
    saved.save_simply(2, state)
    assert saved.steps() == [1]
    assert "checkpoint of step 2 failed, the run goes on" in saved.said[0]
    ballast.unlink()
    saved.save_simply(3, state)
    assert saved.steps() == [1, 3]
    saved.close()
    assert Kept(tmp_path / "disk").restore_newest(shardings).step == 3


def test_the_initial_policy_is_kept_apart_and_checked(tmp_path, mesh, shardings, state):
  saved = Kept(tmp_path)
  saved.save_initial(state.params)
  other = state_lib.create(CONFIG, mesh, OPTIMIZER, seed=1)
  assert equal(host(saved.restore_initial(other.params, shardings.params)), host(state.params))
  commit = tmp_path / "initial" / "commit.json"
  name = max(json.loads(commit.read_text())["files"].items(), key=lambda f: f[1]["bytes"])[0]
  flip_a_byte(tmp_path / "initial" / name)
  with pytest.raises(checkpoint.CheckpointError, match="its sha256"):
    saved.restore_initial(other.params, shardings.params)


def test_no_checkpoint_is_none(tmp_path, shardings):
  assert Kept(tmp_path).restore_newest(shardings) is None


def test_equal_can_fail():
  a = {"x": np.zeros(3)}
  assert equal(a, {"x": np.zeros(3)}) and not equal(a, {"x": np.array([0, 0, 1e-9])})


def test_a_file_in_the_place_of_all_checkpoints_is_named(tmp_path):
  (tmp_path / "steps").write_text("")
  with pytest.raises(checkpoint.CheckpointError, match="steps: got a file, expected the directory"):
    checkpoint.newest_params(tmp_path, SHAPES.params)
