"""The flops of a step, counted from the shapes of the models that work in it."""

import dataclasses

import pytest

from offpolicy_rl.learner import speed
from offpolicy_rl.model import cost
from tests.learner.step_test import choices
from tests.model.decoder_test import CONFIG

TEACHER = dataclasses.replace(CONFIG, num_layers=5, width=64)
LENGTHS = [(7, [3, 1, 5]), (2, [4, 4])]


def flops(teacher=None, layout="padded", kl_coef=0.0, **updates) -> int:
  made = dataclasses.replace(choices("grpo", kl_coef=kl_coef), **updates)
  return speed.step_flops(made, teacher, LENGTHS, layout=layout)


def test_a_step_is_its_epochs_and_one_pass_of_the_teacher():
  padded = cost.work(CONFIG, LENGTHS, shared=False)
  assert flops() == 3 * cost.forward_flops(CONFIG, padded)
  judging = cost.forward_flops(TEACHER, padded)
  assert flops(TEACHER) - flops() == judging > cost.forward_flops(CONFIG, padded)
  once = cost.work(CONFIG, LENGTHS, shared=True)
  both = 3 * cost.forward_flops(CONFIG, once) + cost.forward_flops(TEACHER, once)
  assert flops(TEACHER, "shared") == both
  assert once.tokens < padded.tokens


@pytest.mark.parametrize(
  ("passes", "how"),
  [
    (3 + 1, {"kl_coef": 0.1}),  # forward and backward, reference
    (3 + 1, {"minibatches": 2}),  # forward and backward, proximal policy
    (3 * 3 + 1, {"epochs": 3}),
    (3 * (3 + 1) + 1, {"epochs": 3, "kl_coef": 0.1}),
  ],
)
def test_passes_of_reference_and_proximal_policy_count(passes, how):
  forward = cost.forward_flops(CONFIG, cost.work(CONFIG, LENGTHS, shared=False))
  assert flops(**how) == passes * forward
