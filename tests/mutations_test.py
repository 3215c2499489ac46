"""Every fault of `mutations.py` still fits the code, and the tool tells red from green."""

import ast
import re

import pytest

from tests import mutations
from tests.conftest import ROOT


@pytest.mark.parametrize("name", mutations.FAULTS)
def test_a_fault_fits_the_code_and_its_test_exists(name):
  fault = mutations.FAULTS[name]
  _, text = mutations.mutated(name)
  ast.parse(text)
  assert fault.old.count("\n") <= 1 and fault.old != fault.new
  file, _, test = fault.test.partition("::")
  assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), fault.test


def test_there_are_faults_all_over_the_system():
  assert len(mutations.FAULTS) >= 25
  folders = {fault.file.partition("/")[0] for fault in mutations.FAULTS.values()}
  parts = (
    "config environments evaluation learner losses model observe replay roles sampler sandbox tasks"
  )
  assert folders == {*parts.split(), "transport"}


def test_a_text_that_is_gone_is_named(tmp_path):
  with pytest.raises(mutations.FaultError, match=r"^rope: .*rope.py has .* 0 times, expected once"):
    mutations.mutated("rope", tmp_path)


def test_red_and_green_and_neither_are_told_apart(tmp_path):
  (tmp_path / "one_test.py").write_text(
    "def test_good(): pass\ndef test_bad(): assert False\ndef test_worse(): assert False\n"
  )
  assert mutations.red(tmp_path, "one_test.py::test_good") is None
  assert mutations.red(tmp_path, "one_test.py") == "one_test.py::test_bad"
  with pytest.raises(mutations.FaultError, match=r"^none_test.py: pytest ended with 4:"):
    mutations.red(tmp_path, "none_test.py")
