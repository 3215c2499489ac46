"""Groups on disk: durable before anybody hears of it, found again, forgotten in time."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.replay import store
from offpolicy_rl.transport import checksum, codec


def ticket(step: int, index: int = 0, kind: str = "train") -> types.Ticket:
  name = f"{kind}/{step}/{index}"
  return types.Ticket(name, kind, step, index, np.array([1], np.int32), "", 0, 9, 1, 1.0)


def group(t: types.Ticket, text: str = "") -> types.Group:
  tokens = np.frombuffer(text.encode() or b"x", np.uint8).astype(np.int32)
  trajectory = types.Trajectory(tokens, -tokens.astype(np.float32), tokens * 0, True, 1.0)
  return types.Group(t.ticket_id, (trajectory,))


def put(groups: store.GroupStore, arrival: int, *answers: tuple[types.Ticket, str]):
  """One message with these answers."""
  message = codec.push_requests([group(t, text) for t, text in answers], "session", "me")
  data = checksum.add(next(message).SerializeToString())
  return groups.put(data, [(i, t) for i, (t, _) in enumerate(answers)], arrival)


def text_of(finished: types.FinishedGroup) -> str:
  return bytes(finished.group.trajectories[0].tokens.astype(np.uint8)).decode()


def opened(path) -> store.GroupStore:
  return store.GroupStore(path, decode=codec.group_of_request)


@pytest.fixture
def groups(tmp_path):
  found = opened(tmp_path / "groups")
  yield found
  found.close()


def test_the_first_answer_stays(groups):
  assert put(groups, 2, (ticket(3), "first")).result() == [True]
  assert put(groups, 5, (ticket(3), "second")).result() == [False]
  found = groups.get(ticket(3))
  assert (text_of(found), found.arrival_version, found.ticket.step) == ("first", 2, 3)
  assert groups.get(ticket(4)) is None
  assert len(groups) == 1


def test_several_groups_of_one_message_are_kept_and_found_one_by_one(groups):
  put(groups, 1, (ticket(1), "a")).result()
  told = put(groups, 2, (ticket(0), "b"), (ticket(1), "c"), (ticket(2), "d"), (ticket(2), "e"))
  assert told.result() == [True, False, True, False]
  assert [text_of(groups.get(ticket(step))) for step in range(3)] == ["b", "a", "d"]
  assert len(groups) == 3


def test_what_was_written_is_there_after_opening_again(tmp_path):
  first = opened(tmp_path / "groups")
  for step in range(5):
    put(first, step, (ticket(step), f"text {step}"))
  first.reached(7, 9)
  first.close()
  again = opened(tmp_path / "groups")
  assert [text_of(again.get(ticket(s))) for s in range(5)] == [f"text {s}" for s in range(5)]
  assert again.progress() == (7, 9)
  again.close()


def test_progress_never_goes_back(groups):
  assert groups.progress() == (types.RAW_VERSION, 0)
  groups.reached(5, 8)
  groups.reached(3, 9)
  assert groups.progress() == (5, 9)
  assert len(groups) == 0


def test_pruning_drops_earlier_steps_but_what_is_still_asked_for(groups):
  evaluation = ticket(1, kind="eval")
  put(groups, 0, (ticket(0), ""), (ticket(1), ""), (evaluation, ""))
  put(groups, 0, (ticket(2), ""), (ticket(10), ""))
  put(groups, 0, (ticket(11), ""))
  groups.reached(1, 1)
  groups.prune(10, keep=[evaluation.ticket_id])
  assert [s for s in range(12) if groups.get(ticket(s))] == [10, 11]
  assert groups.get(evaluation) is not None
  assert groups.progress() == (1, 1)
  with groups._env.begin() as transaction:
    messages = transaction.stat(groups._messages)["entries"]
  assert messages == 3  # one holds the evaluation's answer, two hold a later step's
  groups.prune(100)
  with groups._env.begin() as transaction:
    assert transaction.stat(groups._messages)["entries"] == len(groups) == 0


def test_trouble_in_the_writing_thread_reaches_who_waits_and_ends_nothing(groups):
  with pytest.raises(store.StoreError, match="is the disk full"):
    groups._enqueue(lambda transaction: 1 / 0).result()
  assert put(groups, 2, (ticket(3), "")).result() == [True]


def test_who_comes_after_the_end_is_told_so(tmp_path):
  """Else a thread of the server would wait for ever, and the learner's process with it."""
  groups = opened(tmp_path / "groups")
  before = put(groups, 0, (ticket(1), "in time"))
  groups.close()
  assert before.result() == [True]
  with pytest.raises(store.StoreError, match="groups: is closed"):
    put(groups, 0, (ticket(2), "late")).result(timeout=5)


def test_clear_forgets_all(groups):
  put(groups, 0, (ticket(1), "")).result()
  groups.reached(4, 4)
  groups.clear(codec.GROUP_FORM)
  assert len(groups) == 0 and groups.progress() == (types.RAW_VERSION, 0)


def test_a_damaged_group_counts_as_none(tmp_path):
  first = opened(tmp_path / "groups")
  put(first, 0, (ticket(1), "precious" * 2000)).result()
  first.close()
  file = tmp_path / "groups" / "data.mdb"
  data = file.read_bytes()
  place = data.index(b"p\0\0\0r\0\0\0e\0\0\0c")  # int32 tokens
  file.write_bytes(data[:place] + b"q" + data[place + 1 :])
  again = opened(tmp_path / "groups")
  assert again.get(ticket(1)) is None
  again.close()


def test_a_file_that_is_no_store_is_named(tmp_path):
  (tmp_path / "groups").mkdir()
  (tmp_path / "groups" / "data.mdb").write_bytes(os.urandom(9000))
  with pytest.raises(store.StoreError, match="groups: .*move it away"):
    opened(tmp_path / "groups")


def test_every_group_that_was_acknowledged_survives_a_kill(tmp_path):
  """A process writes, says what is durable, and is killed in the middle of it."""
  code = f"""
    import sys
    sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
    from tests.replay.store_test import opened, put, ticket
    groups = opened({str(tmp_path / "groups")!r})
    def tell(step):
      return lambda future: print(step, flush=True)
    for step in range(100_000):
      put(groups, 0, (ticket(step), "x" * 20_000)).add_done_callback(tell(step))
  """
  child = subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
  )
  told = [int(child.stdout.readline()) for _ in range(300)]
  child.send_signal(signal.SIGKILL)
  rest, _ = child.communicate()
  told += [int(line) for line in rest.split("\n")[:-1]]
  groups = opened(tmp_path / "groups")
  assert len(told) >= 300 and told == list(range(len(told)))
  assert all(text_of(groups.get(ticket(step))) == "x" * 20_000 for step in told)
  groups.close()


def test_groups_of_another_release_are_refused_by_name_and_not_lost(tmp_path):
  old = opened(tmp_path / "groups")  # a store of before there were forms
  put(old, 2, (ticket(3), "first")).result()
  with pytest.raises(store.StoreError, match="groups of form 0, expected 3.*move them away"):
    old.claim(codec.GROUP_FORM)
  assert text_of(old.get(ticket(3))) == "first"
  old.clear(codec.GROUP_FORM)
  put(old, 2, (ticket(3), "second")).result()
  old.claim(codec.GROUP_FORM)
  with pytest.raises(store.StoreError, match="groups of form 3, expected 4"):
    old.claim(codec.GROUP_FORM + 1)
  old.close()


def test_a_store_without_groups_may_be_of_any_form(tmp_path):
  moved_away = opened(tmp_path / "groups")
  moved_away.claim(codec.GROUP_FORM)
  moved_away.claim(codec.GROUP_FORM)
  put(moved_away, 2, (ticket(3), "first")).result()
  moved_away.claim(codec.GROUP_FORM)
  moved_away.close()


def test_a_kept_group_says_which_sampler_made_it(groups):
  put(groups, 2, (ticket(3), "first")).result()
  assert groups.get(ticket(3)).group.sampler_id == "me"


@pytest.mark.parametrize(("most", "opens"), [(1 << 34, True), (1 << 29, False)])
def test_little_address_space_is_lived_with_or_named(tmp_path, monkeypatch, most, opens):
  """Of `ulimit -v`."""
  real, sizes = store.lmdb.open, []

  def limited(path, *, map_size, **more):
    sizes.append(map_size)
    if map_size > most:
      raise store.lmdb.MemoryError(f"{path}: Cannot allocate memory")
    return real(path, map_size=map_size, **more)

  monkeypatch.setattr(store.lmdb, "open", limited)
  if opens:
    opened(tmp_path / "groups").close()
    assert sizes[-1] == 1 << 33
  else:
    with pytest.raises(store.StoreError, match="groups: 1024 MiB of address space.*ulimit -v"):
      opened(tmp_path / "groups")


def test_what_is_not_damaged_need_not_move_away(tmp_path):
  (tmp_path / "groups").write_text("a file")
  with pytest.raises(store.StoreError) as refused:
    opened(tmp_path / "groups")
  assert str(refused.value) == f"{tmp_path}/groups: Not a directory"
