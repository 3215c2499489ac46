"""The verifier that asks a seqio Task's metric. Free of TensorFlow until it judges.

It runs in the worker processes of a sampler, which import the module that registers the Task.
"""

import json

from offpolicy_rl.tasks import thoughts
from offpolicy_rl.tasks.scoring import verifier


@verifier
def seqio_metric(completion: str, answer: str) -> float:
  """The first metric of the problem's Task for this completion; 1.0 = that of the right answer.

  Text up to a closed thought does not count.
  """
  from offpolicy_rl.tasks import seqio_reader  # TensorFlow, only here

  data = json.loads(answer)
  given = thoughts.removed(completion) or ""
  return seqio_reader.judge(data["task"], seqio_reader.unpacked(data["example"]), given)
