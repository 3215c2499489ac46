"""Weights through a directory: complete or not there, in the reader's layout, of this session."""

import gc
import json
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.model import sharding
from offpolicy_rl.roles import weights
from offpolicy_rl.system import locks
from offpolicy_rl.transport import client, weights_dir


def tensors(seed: int, dtype=jnp.bfloat16) -> dict[str, jax.Array]:
  keys = jax.random.split(jax.random.key(seed))
  return {
    "a/kernel": jax.random.normal(keys[0], (16, 24), dtype),
    "scale": jax.random.normal(keys[1], (8,), jnp.float32),
  }


def like(found, sharding_of=None) -> dict:
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=(sharding_of or {}).get(name, here))
    for name, x in found.items()
  }


LIKE = like(jax.eval_shape(tensors, 0))


def pull(directory, low=0, high=99, held=-2, session="one", seconds=5.0, **more):
  return weights_dir.pull(
    str(directory),
    low,
    high,
    session=session,
    held_version=held,
    like=LIKE,
    seconds=seconds,
    **more,
  )


def assert_same_bits(found: dict, expected: dict):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert np.asarray(found[name]).tobytes() == np.asarray(array).tobytes()


@pytest.fixture
def publisher(tmp_path):
  made = weights_dir.WeightsDirectory(str(tmp_path / "w"), "one")
  yield made
  made.close()


def wait_until(condition):
  end = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def complete(publisher) -> list[int]:
  return weights_dir.complete_versions(str(publisher._directory), "one")


def hold_back(monkeypatch, go: threading.Event):
  """Writes are finished only once `go` is set."""
  finish = weights_dir.WeightsDirectory._finish
  monkeypatch.setattr(
    weights_dir.WeightsDirectory, "_finish", lambda *args: (go.wait(10), finish(*args))
  )


def test_the_newest_complete_version_within_bounds_comes_back_bit_for_bit(publisher, tmp_path):
  for version in (-1, 0, 1, 2):
    publisher.put(version, tensors(version + 1))
  wait_until(lambda: complete(publisher) == [-1, 0, 1, 2])
  for low, high, expected in ((0, 1, 1), (-1, -1, -1), (0, 99, 2)):
    version, found = pull(tmp_path / "w", low, high)
    assert version == expected
    assert_same_bits(found, tensors(expected + 1))
  assert pull(tmp_path / "w", held=2) == (2, None)


def test_a_version_is_read_straight_into_a_sharded_layout(publisher, tmp_path):
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
  assert len(mesh.devices.flat) == 8
  wanted = {"a/kernel": jax.sharding.NamedSharding(mesh, sharding.spec("embed", "mlp"))}
  publisher.put(0, tensors(0))
  wait_until(lambda: complete(publisher) == [0])
  found = weights_dir.restore(str(tmp_path / "w"), 0, like(tensors(0), wanted))
  assert found["a/kernel"].sharding == wanted["a/kernel"]
  assert {s.data.shape for s in found["a/kernel"].addressable_shards} == {(4, 12)}
  assert_same_bits(found, tensors(0))


def test_arrays_may_change_once_put_has_returned(publisher, tmp_path):
  change = jax.jit(lambda x: x + 1, donate_argnums=0)
  array = jnp.zeros((500, 500))
  for version in range(4):
    publisher.put(version, {"a": jnp.array(array, copy=True)})
    array = change(array)
  wait_until(lambda: complete(publisher) == [0, 1, 2, 3])
  for version in range(4):
    found = weights_dir.restore(str(tmp_path / "w"), version, like({"a": array}))
    assert np.unique(found["a"]).tolist() == [version]


def test_a_version_that_is_being_written_is_not_seen(publisher, tmp_path, monkeypatch):
  publisher.put(0, tensors(0))
  wait_until(lambda: complete(publisher) == [0])
  go = threading.Event()
  hold_back(monkeypatch, go)
  publisher.put(1, tensors(1))
  assert pull(tmp_path / "w")[0] == 0
  with pytest.raises(weights_dir.NotFound, match=r"no version in \[1, 1\] in .* after 0 s"):
    pull(tmp_path / "w", 1, 1, seconds=0.3)
  publisher.retain(lambda version: version == 1)  # 0 must stay until 1 can be read
  time.sleep(0.1)
  assert pull(tmp_path / "w")[0] == 0
  threading.Timer(0.3, go.set).start()
  version, found = pull(tmp_path / "w", 1, 1)
  assert version == 1
  assert_same_bits(found, tensors(1))
  wait_until(lambda: complete(publisher) == [1])


def test_half_a_checkpoint_left_by_a_killed_learner_is_not_seen_and_goes(tmp_path):
  first = weights_dir.WeightsDirectory(str(tmp_path / "w"), "one")
  first.put(0, tensors(0))
  first.close()
  half = tmp_path / "w" / "1.orbax-checkpoint-tmp"
  half.mkdir()
  (half / "manifest.ocdbt").write_text("x")
  (tmp_path / "w" / "2").mkdir()  # looks finished, is not
  assert weights_dir.complete_versions(str(tmp_path / "w"), "one") == [0]
  second = weights_dir.WeightsDirectory(str(tmp_path / "w"), "two")
  assert [p.name for p in (tmp_path / "w").iterdir()] == ["index.json"]
  assert weights_dir.complete_versions(str(tmp_path / "w"), "one") == []
  second.put(0, tensors(5))
  _, found = pull(tmp_path / "w", session="two")
  assert_same_bits(found, tensors(5))
  second.close()


def test_what_is_not_needed_goes(publisher, tmp_path):
  for version in range(4):
    publisher.put(version, tensors(version))
  wait_until(lambda: len(complete(publisher)) == 4)
  publisher.retain(lambda version: version in (1, 3))
  wait_until(lambda: {p.name for p in (tmp_path / "w").iterdir()} == {"1", "3", "index.json"})
  assert json.loads((tmp_path / "w" / "index.json").read_text()) == {
    "session": "one",
    "versions": [1, 3],
  }


def test_what_can_not_be_removed_yet_is_said_and_goes_later(
  publisher, tmp_path, monkeypatch, caplog
):
  """On NFS a directory stays while a reader has its files open; it must not stay for ever."""
  for version in range(3):
    publisher.put(version, tensors(version))
  wait_until(lambda: len(complete(publisher)) == 3)
  folder, left = type(publisher._directory), [OSError("Directory not empty")]
  remove = folder.rmtree

  def stubborn(path, **how):
    if left:
      raise left.pop()
    remove(path, **how)

  monkeypatch.setattr(folder, "rmtree", stubborn)
  publisher.retain(lambda version: version == 2)
  wait_until(lambda: "can't remove versions [0, 1] yet: Directory not empty" in caplog.text)
  assert complete(publisher) == [2] and (tmp_path / "w" / "1").exists()
  publisher.retain(lambda version: version == 2)
  wait_until(lambda: {p.name for p in (tmp_path / "w").iterdir()} == {"2", "index.json"})


def test_the_learner_reads_back_what_it_wrote_and_waits_for_it(publisher, monkeypatch):
  go = threading.Event()
  hold_back(monkeypatch, go)
  publisher.put(5, tensors(5))
  assert publisher.versions() == [5] and complete(publisher) == []
  threading.Timer(0.2, go.set).start()
  assert_same_bits(publisher.tensors(5), tensors(5))
  assert publisher.versions() == complete(publisher) == [5]


def test_a_version_that_goes_while_it_is_read_is_not_used(publisher, tmp_path, monkeypatch):
  publisher.put(0, tensors(0))
  publisher.put(1, tensors(1))
  wait_until(lambda: complete(publisher) == [0, 1])
  restore, reads = weights_dir.restore, []

  def slow(directory, version, like):
    found = restore(directory, version, like)
    if not reads:  # while the first read goes on, the learner drops what is being read
      publisher._remove({1})
    reads.append(version)
    return found

  monkeypatch.setattr(weights_dir, "restore", slow)
  assert pull(tmp_path / "w")[0] == 0
  assert reads == [1, 0]


def test_what_nobody_needs_any_more_is_not_waited_for(publisher, tmp_path):
  """Another sampler has answered the ticket: `seconds` would be lost, and then the sampler."""
  for version in range(3):
    publisher.put(version, tensors(version))
  wait_until(lambda: complete(publisher) == [0, 1, 2])
  publisher.retain(lambda version: version == 2)
  wait_until(lambda: complete(publisher) == [2])
  with pytest.raises(weights_dir.Gone, match=r"no version in \[0, 1\], only newer ones"):
    pull(tmp_path / "w", 0, 1, seconds=60.0)
  learner = types.SimpleNamespace(session="one", check_session=lambda: None)
  with pytest.raises(client.VersionGone):  # as if it were streamed
    weights._Stored(learner, LIKE, str(tmp_path / "w"), 60.0).fetch(0, 1)


# orbax leaves the tasks of a failed read behind
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_never_used(publisher, tmp_path):
  publisher.put(0, tensors(0))
  wait_until(lambda: complete(publisher) == [0])
  for file in (tmp_path / "w" / "0").rglob("*"):
    if file.is_file() and file.parent.name == "d":
      file.unlink()
  with pytest.raises(weights_dir.NotFound, match="no version in"):
    pull(tmp_path / "w", seconds=0.3)
  gc.collect()  # so that they end here and not in another test


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_array_that_ends_early_is_an_error_that_pull_expects(publisher, tmp_path):
  """Orbax raises a bare Exception then, e.g. when the learner removes what is being read."""
  large = {"a": jax.random.normal(jax.random.key(0), (100, 50))}  # in a file of its own
  publisher.put(0, large)
  wait_until(lambda: complete(publisher) == [0])
  files = [file for file in (tmp_path / "w" / "0").rglob("*") if file.parent.name == "d"]
  largest = max(files, key=lambda file: file.stat().st_size)
  largest.write_bytes(bytes(largest.stat().st_size))
  with pytest.raises(OSError, match='Error reading "a/0.0"'):
    weights_dir.restore(str(tmp_path / "w"), 0, like(large))
  gc.collect()


@pytest.mark.parametrize("given", ["gs://bucket/run/weights", "/mnt/weights", "weights"])
def test_paths_of_every_kind_become_absolute(given, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  expected = str(tmp_path / given) if given == "weights" else given
  assert str(weights_dir._path(given)) == expected


def test_waiting_asks_whether_the_learner_is_still_the_same(publisher, tmp_path):
  def lost():
    raise InterruptedError("another session")

  with pytest.raises(InterruptedError, match="another session"):
    pull(tmp_path / "w", check=lost)
  with pytest.raises(weights_dir.NotFound, match="is it the learner's directory"):
    pull(tmp_path / "elsewhere", seconds=0.1)


def test_a_directory_with_other_files_is_not_taken_over(tmp_path):
  (tmp_path / "thesis.tex").write_text("x")
  (tmp_path / "12").mkdir()
  with pytest.raises(ValueError, match=r"--weights_dir: .* holds \['thesis.tex'\], expected"):
    weights_dir.WeightsDirectory(str(tmp_path), "one")
  assert (tmp_path / "12").exists()


def test_brackets_in_a_path_are_no_pattern(tmp_path):
  publisher = weights_dir.WeightsDirectory(str(tmp_path / "a[b]*"), "one")
  publisher.put(3, tensors(3))
  wait_until(lambda: complete(publisher) == [3])
  version, found = pull(tmp_path / "a[b]*")
  assert version == 3
  assert_same_bits(found, tensors(3))
  publisher.close()


def test_the_lock_of_the_directory_stays(tmp_path):
  (tmp_path / "12").mkdir()
  with locks.hold(str(tmp_path), "--weights_dir", print):
    weights_dir.WeightsDirectory(str(tmp_path), "one").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "lock.json"]


def test_a_write_that_failed_is_reported(tmp_path):
  publisher = weights_dir.WeightsDirectory(str(tmp_path / "w"), "one")
  job = publisher._worker.submit(lambda: 1 / 0)
  publisher._jobs[7] = job
  wait_until(job.done)
  with pytest.raises(ZeroDivisionError):
    publisher.put(0, tensors(0))
  publisher.close()


def test_at_most_two_versions_are_being_written(publisher, monkeypatch):
  go = threading.Event()
  hold_back(monkeypatch, go)
  publisher.put(0, tensors(0))
  publisher.put(1, tensors(1))
  third = threading.Thread(target=publisher.put, args=(2, tensors(2)))
  third.start()
  third.join(0.3)
  assert third.is_alive()
  go.set()
  third.join(5)
  assert not third.is_alive()
