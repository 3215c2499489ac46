"""The golden file of an independent implementation, and that its checker notices errors."""

import copy
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl.losses import advantages, objectives
from tests.losses import golden
from tests.params import some

FIXTURE = json.loads(golden.FIXTURE.read_text())
NAMES = list(dict.fromkeys(row["name"] for row in FIXTURE["results"]))
# The first configuration of every objective, and all others in `make test-long`.
ONE_OF_EACH = list({row["objective"]: row["name"] for row in reversed(FIXTURE["results"])}.values())
OTHERS = [name for name in NAMES if name not in ONE_OF_EACH]
WIDTH = 9  # of the widest case


def widened(values):
  """[N, M, ...] -> [N, WIDTH, ...] with zeros, all else as it is: fewer shapes to compile for."""
  if not isinstance(values, list) or not isinstance(values[0], list):
    return values
  wide = np.array(values)
  edges = [(0, 0), (0, WIDTH - wide.shape[1]), *[(0, 0)] * (wide.ndim - 2)]
  return np.pad(wide, edges).tolist()


def widened_row(row: dict) -> dict:
  return row | {key: widened(value) for key, value in row.items() if key.startswith("grad")}


def cases_with(*, candidates: bool) -> list[str]:
  return [c["name"] for c in FIXTURE["cases"] if ("lp_policy_candidates" in c) == candidates]


@functools.cache
def widened_cases():
  return {c["name"]: {k: widened(v) for k, v in c.items()} for c in FIXTURE["cases"]}


@pytest.fixture
def no_metrics(monkeypatch):
  """The fixture has no metrics; computing them costs more than the losses."""
  monkeypatch.setattr(objectives.Objective, "metrics", lambda self, inputs, prepared: {})


def test_the_fixture_is_whole():
  """Configurations with candidates have cases of their own."""
  centred = {row["name"] for row in FIXTURE["results"] if "grad_candidates" in row}
  cases = [len(cases_with(candidates=x)) for x in (False, True)]
  assert (len(NAMES), len(centred), cases) == (90, 4, [4, 6])
  assert len(FIXTURE["results"]) == 86 * 4 + 4 * 6 == 368


@pytest.mark.parametrize(
  ("name", "float32"),
  some(
    [(name, False) for name in ONE_OF_EACH],
    [*((name, False) for name in OTHERS), *((name, True) for name in ONE_OF_EACH)],
  ),
)
def test_configuration(name, float32, no_metrics):
  rows = [row for row in FIXTURE["results"] if row["name"] == name]
  assert [row["case"] for row in rows] == cases_with(candidates="grad_candidates" in rows[0])
  for row in rows:
    case = widened_cases()[row["case"]]
    with jax.enable_x64(not float32):
      found = golden.errors(widened_row(row), case)
    assert max(found) <= golden.tolerance(row, case, float32=float32), (row["case"], found)


def one_row_fixture(name: str = "grpo") -> dict:
  """The first row of a configuration and its case, in the file's format."""
  row = next(row for row in FIXTURE["results"] if row["name"] == name)
  fixture = {"cases": [widened_cases()[row["case"]]], "results": [widened_row(row)]}
  return copy.deepcopy(fixture)


def run_checker(fixture: dict, path, *options) -> int:
  file = path / "fixture.json"
  file.write_text(json.dumps(fixture))
  return golden.main(["--fixture", str(file), *options])


@pytest.mark.parametrize("options", [(), ("--float32",)])
def test_the_checker_accepts_a_file_of_the_format(options, tmp_path, capsys, no_metrics):
  assert run_checker(one_row_fixture(), tmp_path, *options) == 0
  printed = capsys.readouterr().out
  assert "1 of 1 rows within tolerance" in printed and "WRONG" not in printed


def wrong_loss(row):
  row["loss"] *= 1 + 1e-7


def wrong_gradient(row):
  row["grad"][0][0] += 1e-7 * np.abs(row["grad"]).max()


def wrong_sign(row):
  row["grad"] = (-np.array(row["grad"])).tolist()


def wrong_choice(row):
  row["config"]["eps_low"] = 0.05


@pytest.mark.parametrize("spoil", [wrong_loss, wrong_gradient, wrong_sign, wrong_choice])
def test_the_checker_notices_an_error(spoil, tmp_path, capsys, no_metrics):
  fixture = one_row_fixture()
  spoil(fixture["results"][0])
  assert run_checker(fixture, tmp_path) == 1
  printed = capsys.readouterr().out
  assert "WRONG" in printed and "0 of 1 rows within tolerance" in printed


def test_the_checker_notices_a_wrong_gradient_of_one_candidate(tmp_path, capsys, no_metrics):
  fixture = one_row_fixture("score_centering")
  assert run_checker(fixture, tmp_path) == 0
  [row] = fixture["results"]
  row["grad_candidates"][0][0][1] += 1e-7 * np.abs(row["grad"]).max()
  assert run_checker(fixture, tmp_path) == 1
  assert "WRONG" in capsys.readouterr().out


def test_a_wrong_row_is_not_hidden_by_a_right_one_of_the_same_name(tmp_path, capsys, no_metrics):
  fixture = one_row_fixture()
  right = copy.deepcopy(fixture["results"][0])
  wrong_loss(fixture["results"][0])
  fixture["results"].append(right)
  assert run_checker(fixture, tmp_path) == 1
  assert "WRONG" in capsys.readouterr().out


def test_overlong_penalty():
  table = FIXTURE["overlong_soft"]
  lengths, expected = np.array(table["table"]).T
  found = advantages.overlong_penalty(
    jnp.asarray(lengths), max_tokens=table["L_max"], overlong_cache=table["L_cache"]
  )
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("float32", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("row", FIXTURE["vhat"], ids=lambda r: f"{r['rewards']}-{r['beta1']}")
def test_vhat(row, float32):
  with jax.enable_x64(not float32):
    rewards = jnp.asarray(row["rewards"], float)
    found = rewards - advantages.vhat(rewards, jnp.zeros(4, int), beta1=row["beta1"])
  tolerance = golden.FLOAT32 if float32 else golden.FLOAT64
  np.testing.assert_allclose(found, np.full(4, row["vhat"]), rtol=tolerance, atol=tolerance)
