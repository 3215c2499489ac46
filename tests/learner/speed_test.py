"""The flops of a step, counted from the shapes of the models that work in it."""

import dataclasses

from offpolicy_rl.learner import speed
from offpolicy_rl.model import cost
from tests.model.decoder_test import CONFIG

TEACHER = dataclasses.replace(CONFIG, num_layers=5, width=64)
LENGTHS = [(7, [3, 1, 5]), (2, [4, 4])]


def test_a_step_is_its_epochs_and_one_pass_of_the_teacher(tiny_config):
  settings = tiny_config.learner
  settings.epochs = 3
  count = lambda teacher: speed.step_flops(settings, CONFIG, teacher, LENGTHS)
  padded = cost.work(CONFIG, LENGTHS, shared=False)
  assert count(None) == 3 * 3 * cost.forward_flops(CONFIG, padded)
  judging = cost.forward_flops(TEACHER, padded)
  assert count(TEACHER) - count(None) == judging > cost.forward_flops(CONFIG, padded)
  settings.layout = "shared"
  once = cost.work(CONFIG, LENGTHS, shared=True)
  assert count(TEACHER) == 9 * cost.forward_flops(CONFIG, once) + cost.forward_flops(TEACHER, once)
  assert once.tokens < padded.tokens
