"""Groups become rows; nothing is cut, moved or mixed up."""

import dataclasses

import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.replay import admission, batching, packing
from offpolicy_rl.replay.lag import LagControl
from offpolicy_rl.replay.ledger import Ledger


def trajectory(tokens, versions, reward, verdict=None) -> types.Trajectory:
  tokens = np.array(tokens, np.int32)
  return types.Trajectory(
    tokens,
    -tokens.astype(np.float32) / np.float32(10),
    np.array(versions, np.int32),
    True,
    reward,
    verdict,
  )


def finished(prompt, trajectories, arrival=0) -> types.FinishedGroup:
  ticket = types.Ticket(
    "t", types.TRAIN, 9, 0, np.array(prompt, np.int32), "", 0, 9, len(trajectories), 1.0
  )
  return types.FinishedGroup(ticket, types.Group("t", tuple(trajectories), 1), arrival)


GROUPS = [
  finished([7, 8], [trajectory([3, 1], [4, 4], 1.0), trajectory([5], [5], 0.0)], arrival=6),
  finished(
    [9], [trajectory([2, 2, 1], [4, 5, 6], 0.5, 1.0), trajectory([6, 1], [7, 7], 0.0)], arrival=7
  ),
]


PADDED = packing.Limits(packing.PADDED, 2, 3, 5)


def test_a_row_is_prompt_completion_padding():
  batch = batching.make_batch(GROUPS, PADDED)
  np.testing.assert_array_equal(
    batch.rows.tokens, [[[7, 8, 3, 1, 0], [7, 8, 5, 0, 0], [9, 2, 2, 1, 0], [9, 6, 1, 0, 0]]]
  )
  np.testing.assert_array_equal(
    batch.rows.ends, [[[4, 4, 4, 4, 5], [3, 3, 3, 5, 5], [4, 4, 4, 4, 5], [3, 3, 3, 5, 5]]]
  )
  np.testing.assert_array_equal(
    batch.rows.segments, [[[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]]
  )


def test_what_an_environment_wrote_is_read_and_not_in_the_loss():
  o, n = False, types.NO_VERSION
  episode = trajectory([3, 4, 5], [1, n, 2], 1.0)
  logprobs = np.where(episode.sampled, episode.logprobs, 0)
  episode = dataclasses.replace(episode, logprobs=logprobs, ended=types.DONE)
  batch = batching.make_batch([finished([7], [episode, trajectory([6], [2], 0.0)], 3)], PADDED)
  np.testing.assert_array_equal(batch.rows.tokens, [[[7, 3, 4, 5, 0], [7, 6, 0, 0, 0]]])
  np.testing.assert_array_equal(batch.loss_mask, [[[True, o, True], [True, o, o]]])
  np.testing.assert_array_equal(batch.versions, [[[1, n, 2], [2, n, n]]])
  lags = batching.lag_metrics([finished([7], [episode, trajectory([6], [2], 0.0)], 3)], 4)
  assert lags["lag/histogram"] == {"2": 2, "3": 1}


def test_what_was_recorded_is_by_completion():
  batch = batching.make_batch(GROUPS, PADDED)
  x, o, n = True, False, types.NO_VERSION
  np.testing.assert_array_equal(batch.loss_mask, [[[x, x, o], [x, o, o], [x, x, x], [x, x, o]]])
  np.testing.assert_array_equal(batch.versions, [[[4, 4, n], [5, n, n], [4, 5, 6], [7, 7, n]]])
  np.testing.assert_allclose(
    batch.sampler_logprobs, [[[-0.3, -0.1, 0], [-0.5, 0, 0], [-0.2, -0.2, -0.1], [-0.6, -0.1, 0]]]
  )
  np.testing.assert_array_equal(batch.rewards, np.float32([[1.0, 0.0, 0.5, 0.0]]))
  np.testing.assert_array_equal(batch.verdicts, np.float32([[1.0, 0.0, 1.0, 0.0]]))
  np.testing.assert_array_equal(batch.group_ids, [[0, 0, 1, 1]])


def test_candidates_lie_with_their_tokens():
  given = [trajectory([3, 1], [4, 4], 1.0), trajectory([5], [5], 0.0)]
  ids = [[[10, 11], [12, 13]], [[14, 15]]]
  given = [
    dataclasses.replace(t, candidates=types.Candidates(np.int32(i), -np.float32(i)))
    for t, i in zip(given, ids, strict=True)
  ]
  for layout, columns in ((packing.PADDED, 5), (packing.SHARED, 9)):
    limits = packing.Limits(layout, 2, 3, columns)
    batch = batching.make_batch([finished([7, 8], given)], limits)
    chosen = batch.rows.candidates.reshape(-1, 2)[batch.places[0]]
    for n, t in enumerate(given):
      np.testing.assert_array_equal(chosen[n, : t.tokens.size], t.candidates.tokens)
      np.testing.assert_array_equal(
        batch.candidate_logprobs[0, n, : t.tokens.size], t.candidates.logprobs
      )
    assert batch.candidate_logprobs.shape == (1, 2, 3, 2)
    assert not batch.candidate_logprobs[~batch.loss_mask].any()
  assert batching.make_batch(GROUPS, PADDED).rows.candidates is None


def test_parts_are_whole_groups_in_order():
  batch = batching.make_batch(GROUPS, PADDED, parts=2)
  np.testing.assert_array_equal(batch.group_ids, [[0, 0], [1, 1]])
  np.testing.assert_array_equal(batch.rewards, np.float32([[1.0, 0.0], [0.5, 0.0]]))
  assert batch.rows.tokens.shape == (2, 2, 5)


def test_a_completion_that_does_not_fit_is_an_error_not_cut():
  with pytest.raises(ValueError, match=r"group 1: 1 \+ 3 tokens, the batch has room for 2 \+ 2"):
    batching.make_batch(GROUPS, packing.Limits(packing.PADDED, 2, 2, 4))


def test_demonstrations_are_masked_like_completions():
  pair = (np.array([7, 8], np.int32), np.array([3, 1], np.int32))
  batch = batching.demonstration_batch([pair], PADDED)
  np.testing.assert_array_equal(batch.rows.tokens, [[[7, 8, 3, 1, 0]]])
  np.testing.assert_array_equal(batch.loss_mask, [[[True, True, False]]])


def test_lag_is_counted_per_token_and_split_at_arrival():
  """Step 9. Group 0: versions 4 4 5, arrived at 6. Group 1: versions 4 5 6 7 7, arrived at 7."""
  found = batching.lag_metrics(GROUPS, step=9)
  assert found["lag/histogram"] == {"2": 2, "3": 1, "4": 2, "5": 3}
  assert found["lag/mean"] == pytest.approx((2 * 2 + 3 + 4 * 2 + 5 * 3) / 8)
  assert found["lag/max"] == 5
  assert found["lag/in_queue_mean"] == pytest.approx((3 * 3 + 5 * 2) / 8)
  assert found["lag/in_flight_histogram"] == {"0": 2, "1": 2, "2": 3, "3": 1}
  assert found["lag/in_queue_histogram"] == {"2": 5, "3": 3}
  assert found["lag/in_flight_mean"] + found["lag/in_queue_mean"] == pytest.approx(
    found["lag/mean"]
  )


@pytest.mark.parametrize(("arrival", "in_queue"), [(12, 0), (-1, 4)])
def test_a_group_that_arrived_around_a_kill_waited_at_most_its_lag(arrival, in_queue):
  """Used at step 9. It came at version 12, which is lost; or before there was one again."""
  group = finished([7], [trajectory([3, 1], [4, 5], 1.0)], arrival=arrival)
  found = batching.lag_metrics([group], step=9)
  assert found["lag/in_queue_histogram"] == {str(in_queue): 2}
  in_flight = {4 - in_queue: 1, 5 - in_queue: 1}
  assert found["lag/in_flight_histogram"] == {str(lag): n for lag, n in in_flight.items()}


def test_what_the_host_knows_of_completions():
  found = batching.completion_metrics(GROUPS)
  expected = {"finished_fraction": 1.0, "verifier_failures": 2, "alarm/nothing_judged": 0.0}
  assert found == expected
  all_failed = finished([7], [trajectory([3], [1], 0.0)] * 2)
  group = dataclasses.replace(all_failed.group, verifier_failures=2)
  [lost] = [dataclasses.replace(all_failed, group=group)]
  assert batching.completion_metrics([lost])["alarm/nothing_judged"] == 1.0


def test_episodes_are_counted_by_their_ends():
  n = types.NO_VERSION
  one = dataclasses.replace(
    trajectory([3, 4, 5], [1, n, 2], 1.0), ended=types.DONE, turn_rewards=(0.0, 1.0)
  )
  other = dataclasses.replace(trajectory([6], [2], 0.0), ended=types.FAILED, turn_rewards=(0.0,))
  quick = dataclasses.replace(one, seconds=types.Seconds(1.0, 0.5, 0.25))
  slow = dataclasses.replace(other, seconds=types.Seconds(2.0, 1.0, 0.75))
  found = batching.completion_metrics([finished([7], [one, quick, slow, other])])
  assert {k: v for k, v in found.items() if k.startswith("episode/")} == {
    "episode/turns": 1.5,
    "episode/environment_tokens": 0.5,
    "episode/done": 0.5,
    "episode/turns_limit": 0.0,
    "episode/tokens_limit": 0.0,
    "episode/time_limit": 0.0,
    "episode/failed": 0.5,
    "episode/seconds_world": 1.5,
    "episode/seconds_queue": 0.75,
    "episode/seconds_model": 0.5,
  }


class Example:
  environment = ""

  def __init__(self, i):
    self.prompt_tokens, self.answer = np.array([i], np.int32), str(i)


def test_tickets_of_a_step_are_a_function_of_the_step():
  stream = [Example(i) for i in range(100)]
  lag = LagControl("fixed", 2)
  made = admission.Tickets(stream, lag, prompts_per_step=3, group_size=4, temperature=0.9).for_step(
    5
  )
  assert [t.ticket_id for t in made] == ["train/5/0", "train/5/1", "train/5/2"]
  assert admission.ticket_ids(5, 3, lag) == [t.ticket_id for t in made]
  assert [t.group_index for t in made] == [15, 16, 17]
  assert [t.answer for t in made] == ["15", "16", "17"]
  assert all(
    (t.min_version, t.max_version, t.step, t.num_completions) == (3, 3, 5, 4) for t in made
  )


def test_admission_queues_each_step_once_as_versions_appear():
  book = Ledger(10)
  made = admission.Tickets([Example(i) for i in range(9)], LagControl("async", 2), 1, 2, 1.0)
  noted = []
  admit = admission.Admission(
    book,
    LagControl("async", 2),
    made,
    first_step=0,
    num_steps=5,
    reached=lambda *progress: noted.append((progress, book.audit()["added"])),
  )
  seen = []
  for version in range(6):
    admit.published(version)
    seen.append([t.ticket_id for t in book.lease("s", 99, timeout=0)])
  assert seen == [["train/0/0", "train/1/0", "train/2/0"], ["train/3/0"], ["train/4/0"], [], [], []]
  # Progress is noted before the tickets it speaks of are there to be leased.
  assert noted[:3] == [((0, 3), 0), ((1, 4), 3), ((2, 5), 4)]


def test_answers_to_a_learner_that_died_are_known_by_their_ticket():
  book = Ledger(10)
  made = admission.Tickets([Example(i) for i in range(99)], LagControl("async", 1), 2, 2, 1.0)
  admit = admission.Admission(
    book,
    LagControl("async", 1),
    made,
    first_step=4,
    num_steps=20,
    reached=lambda *_: None,
    known_steps=9,
  )
  admit.published(4)  # queues steps 4 and 5; before the restart tickets of steps up to 8 were out
  known = admit.ticket_before_restart
  assert known("train/8/1").ticket_id == "train/8/1"
  assert admit.is_consumed("train/3/0", version=4)  # before the checkpoint
  assert not any(admit.is_consumed(name, version=4) for name in ("train/4/0", "eval/x/0", "/"))
  for name in (
    "train/5/0",
    "train/9/0",
    "train/8/18",
    "eval/during-4/1/greedy",
    "train/x/0",
    "",
    "/",
  ):
    assert known(name) is None
