"""Processes that wait for their arguments run them, or make way."""

from offpolicy_rl.system import children


def test_a_spare_runs_the_command_with_its_output_in_the_file(tmp_path):
  spares = children.Spares("json", 1)
  [waiting] = spares._waiting
  with (tmp_path / "log").open("ab") as log:
    child = spares.start(["keys", "seed"], output=log)
  assert child is waiting and child.wait(60) == 0
  assert "seed = 0" in (tmp_path / "log").read_text()
  spares.close()


def test_without_a_living_spare_the_command_gets_a_process_of_its_own(tmp_path):
  spares = children.Spares("no_such_module", 1)
  [dead] = spares._waiting
  assert dead.wait(60) == 1
  with (tmp_path / "log").open("ab") as log:
    child = spares.start(["--version"], output=log)
  assert child is not dead and child.wait(60) == 0
  assert (tmp_path / "log").read_text().strip()


def test_spares_that_nobody_needs_end():
  spares = children.Spares("json", 2)
  spares.close()
  assert all(child.poll() is not None for child in spares._waiting)
