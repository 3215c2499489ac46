"""A short version of benchmarks/chaos.py: what it does to a run, and that its audit can fail."""

import copy

import pytest

from benchmarks import chaos


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  return chaos.study(
    faults=6, seed=3, mode="fixed", samplers=3, folder=tmp_path_factory.mktemp("c")
  )


@pytest.mark.timeout(500)
def test_nothing_is_lost_doubled_or_bent_by_faults(report):
  assert chaos.passed(report), report
  assert sum(report["faults"].values()) == 6
  assert report["audit"]["accepted_groups_seen"] > 200


@pytest.mark.timeout(500)
def test_the_audit_can_fail(report):
  for name in report["audit"]:
    worse = copy.deepcopy(report)
    worse["audit"][name] = 0 if name == "accepted_groups_seen" else 1
    assert not chaos.passed(worse), name
