"""The files of a run that grow with every step."""

import pytest

from offpolicy_rl import metrics


@pytest.mark.parametrize(("position", "kept"), [(None, [0, 1]), (12, [0]), (0, []), (999, [0, 1])])
def test_a_file_goes_on_where_the_checkpoint_stood(tmp_path, position, kept):
  """Past its end, too: the file of a run whose own disk was lost begins anew, without a hole."""
  rows = [{"step": 0}, {"step": 1}]
  first = metrics.JsonLines(tmp_path / metrics.FILE)
  for row in rows:
    first.append(row)
  first.close()
  second = metrics.JsonLines(tmp_path / metrics.FILE, position)
  second.append({"step": 7})
  second.close()
  assert [row["step"] for row in metrics.read(tmp_path)] == [*kept, 7]
