"""The flops of a step, counted from the shapes of the models that work in it."""

import dataclasses

from offpolicy_rl.learner import speed
from offpolicy_rl.model import cost
from tests.model.decoder_test import CONFIG

TEACHER = dataclasses.replace(CONFIG, num_layers=5, width=64)
LENGTHS = [(7, [3, 1, 5]), (2, [4, 4])]


def test_a_step_is_its_epochs_and_one_pass_of_the_teacher():
  count = lambda teacher, layout="padded": speed.step_flops(
    CONFIG, teacher, LENGTHS, layout=layout, epochs=3
  )
  padded = cost.work(CONFIG, LENGTHS, shared=False)
  assert count(None) == 3 * 3 * cost.forward_flops(CONFIG, padded)
  judging = cost.forward_flops(TEACHER, padded)
  assert count(TEACHER) - count(None) == judging > cost.forward_flops(CONFIG, padded)
  once = cost.work(CONFIG, LENGTHS, shared=True)
  both = 9 * cost.forward_flops(CONFIG, once) + cost.forward_flops(TEACHER, once)
  assert count(TEACHER, "shared") == both
  assert once.tokens < padded.tokens
