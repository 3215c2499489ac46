"""What the learner remembers of its samplers is recent and bounded."""

from offpolicy_rl.roles import pulse


def test_the_rate_adds_up_the_samplers_heard_of_lately():
  now = [0.0]
  heard = pulse.Pulse(clock=lambda: now[0])
  heard.hear("a", {"tokens_per_second": 5.0})
  now[0] = 6.0
  heard.hear("b", {"tokens_per_second": 7.0})
  heard.hear("c", {"something_else": 1.0})
  assert heard.metrics() == {"sampler/count": 3, "sampler/tokens_per_second": 12.0}
  heard.hear("b", {"tokens_per_second": 9.0, "waiting": 0.25})
  now[0] = 11.0
  assert heard.metrics() == {
    "sampler/count": 2,
    "sampler/tokens_per_second": 9.0,
    "sampler/waiting": 0.25,
  }


def test_new_names_push_out_those_not_heard_of_longest():
  heard = pulse.Pulse(clock=lambda: 0.0)
  heard.hear("faithful", {"tokens_per_second": 3.0})
  for i in range(5000):
    heard.hear(f"made-up-{i}", {})
    heard.hear("faithful", {"tokens_per_second": 3.0})
  assert len(heard._last) == 1024 and heard.metrics()["sampler/tokens_per_second"] == 3.0
