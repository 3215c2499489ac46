"""W&B, MLflow and Trackio as trackers of tracking.py; each imports its package when it is used.

They are set up by the packages' own environment variables (WANDB_MODE, MLFLOW_TRACKING_URI,
TRACKIO_DIR, ...). What a package does with rows that it has already is tested with the real one
(tests/observe/trackers_test.py).
"""

import functools
import os
import pathlib
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from typing import Any

from offpolicy_rl.observe import catalogue
from offpolicy_rl.observe.tracking import Package, Row, TrackedRun

PROJECT = "offpolicy-rl"  # unless the environment names another
_KINDS = tuple(kind for kind in catalogue.METRICS if kind not in ("heartbeat", "sweep"))
_SECONDS = 50  # for W&B to begin, and to upload the rest at the end
_MAX_PARAMS = 100  # of MLflow, in one call


class Wandb:
  """A run of Weights & Biases, online or offline.

  Its own step only grows, so that is the row's number; charts go by train/step and the like. A run
  that is resumed online goes on behind the rows that the server has. Offline there is none to ask:
  the run is recorded anew, with all its rows, and what was recorded before is put aside.
  """

  def __init__(self, run: TrackedRun):
    import wandb

    settings = wandb.Settings(console="off", silent=True, init_timeout=_SECONDS)
    settings.finish_timeout = _SECONDS
    offline = wandb.setup(settings).settings.mode in ("offline", "dryrun")
    if not offline and not wandb.login(prompt=False, verify=False):
      raise PermissionError("no API key")  # else `init` would wait for someone to type it
    if offline and not run.first_row:
      _put_aside(run)
    self._run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", PROJECT),
      id=run.id,
      name=run.name,
      group=run.group or None,
      dir=run.directory,
      config=dict(run.config),
      resume=None if offline else "allow",
      settings=settings,
    )
    for kind in _KINDS:
      self._run.define_metric(f"{kind}/*", step_metric=f"{kind}/step")
    self.rows = 0 if offline else self._run.starting_step
    recorded = pathlib.Path(self._run.dir).parent
    self.where = f"offline; wandb sync {recorded}" if offline else str(self._run.url)

  def write(self, row: Row) -> None:
    """Adds a row."""
    self._run.log(row.values | {f"{row.kind}/step": row.step}, step=row.number, commit=True)

  def close(self, result: str, artifacts: Sequence[pathlib.Path]) -> None:
    """Ends the run, with an artifact that has the files."""
    import wandb

    artifact = wandb.Artifact(f"run-{self._run.id}", type="run")
    for path in artifacts:
      artifact.add_file(str(path))
    self._run.log_artifact(artifact)
    self._run.finish(exit_code=int(result == "failed"))


def _put_aside(run: TrackedRun) -> None:
  """Moves what W&B has recorded offline and not uploaded to where `wandb sync` does not look."""
  for folder in (run.directory / "wandb").glob(f"offline-run-*-{run.id}"):
    if not any(folder.glob("*.synced")):
      aside = run.directory / "wandb" / "before"
      aside.mkdir(exist_ok=True)
      folder.rename(aside / folder.name)


class Mlflow:
  """A run of MLflow, in its database or on its server.

  It keeps every value of a metric, even two of one step, and deletes none. So the number of the
  last row is a metric, too (row), and rows up to it are not sent again. Runs of a sweep have its
  name as their tag "sweep".
  """

  def __init__(self, run: TrackedRun):
    import mlflow

    _make_database(mlflow.get_tracking_uri())
    self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
    self._failed = mlflow.exceptions.MlflowException
    experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    found = self._client.search_runs([experiment], f"tags.offpolicy_rl_id = '{run.id}'")
    tags = {"offpolicy_rl_id": run.id} | ({"sweep": run.group} if run.group else {})
    opened = (
      found[0] if found else self._client.create_run(experiment, tags=tags, run_name=run.name)
    )
    self._id = opened.info.run_id
    self._client.update_run(self._id, status="RUNNING")
    missing = [item for item in run.config.items() if item[0] not in opened.data.params]
    params = [mlflow.entities.Param(key, str(value)) for key, value in missing]
    for i in range(0, len(params), _MAX_PARAMS):
      self._client.log_batch(self._id, params=params[i : i + _MAX_PARAMS])
    self.rows = int(opened.data.metrics.get("row", -1)) + 1
    self.where = f"run {self._id} of experiment {experiment} at {mlflow.get_tracking_uri()}"

  def _experiment(self, name: str) -> str:
    if found := self._client.get_experiment_by_name(name):
      return found.experiment_id
    try:
      return self._client.create_experiment(name)
    except self._failed:
      if found := self._client.get_experiment_by_name(name):  # another run was quicker
        return found.experiment_id
      raise

  def write(self, row: Row) -> None:
    """Adds a row; names get _ in place of what MLflow does not allow in them."""
    now = int(time.time() * 1000)
    named = {re.sub(r"[^\w./ :-]", "_", tag): value for tag, value in row.values.items()}
    values = [self._entities.Metric(tag, x, now, row.step) for tag, x in named.items()]
    last = self._entities.Metric("row", row.number, now, row.number)
    self._client.log_batch(self._id, metrics=[*values, last])

  def close(self, result: str, artifacts: Sequence[pathlib.Path]) -> None:
    """Ends the run, with the files as its artifacts."""
    for path in artifacts:
      self._client.log_artifact(self._id, str(path))
    ends = {"finished": "FINISHED", "stopped": "KILLED"}
    self._client.set_terminated(self._id, ends.get(result, "FAILED"))


def _make_database(uri: str) -> None:
  """Makes MLflow's database, whole or not at all, if it is a SQLite file that is not there.

  MLflow would make it in place, by 1,700 statements: one that is killed meanwhile leaves a database
  that no run can open again, and one that begins meanwhile fails.
  """
  if not uri.startswith("sqlite:"):
    return
  import mlflow
  import sqlalchemy

  url = sqlalchemy.make_url(uri)
  path = pathlib.Path(url.database or ":memory:")
  if path.name == ":memory:" or str(path).startswith("file:") or path.exists():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as folder:
    made = pathlib.Path(folder, "mlflow.db")
    client = mlflow.MlflowClient(tracking_uri=str(url.set(database=str(made))))
    client.search_experiments()
    put_if_absent(made, path)


def put_if_absent(made: pathlib.Path, path: pathlib.Path) -> None:
  """Copies a file to a path at once; a file that is there already stays."""
  whole = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
  try:
    shutil.copy(made, whole)
    try:
      os.link(whole, path)
    except FileExistsError:
      pass
    except OSError:
      whole.rename(path)  # a file system without hard links
  finally:
    whole.unlink(missing_ok=True)


class Trackio:
  """A run of Trackio, in its local database, or on a server or Space of Hugging Face.

  The step is the row's number, from which a resumed run goes on; train/step and the like can be
  chosen as x axis.
  """

  def __init__(self, run: TrackedRun):
    import trackio

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    self._run: Any = trackio.init(
      project=project,
      name=f"{run.name}-{run.id}",
      group=run.group or None,
      config=dict(run.config),
      resume="allow",
      embed=False,
      auto_log_gpu=False,
      auto_log_cpu=False,
    )
    self._new_artifact = functools.partial(trackio.Artifact, f"run-{run.id}", type="run")
    self.rows = self._run._next_step  # no public name says it, locally and on a server alike
    self.where = f"trackio show --project {project}"

  def write(self, row: Row) -> None:
    """Adds a row."""
    self._run.log(row.values | {f"{row.kind}/step": row.step}, step=row.number)

  def close(self, result: str, artifacts: Sequence[pathlib.Path]) -> None:
    """Ends the run, with an artifact that has the files."""
    artifact = self._new_artifact(metadata={"result": result})
    for path in artifacts:
      artifact.add_file(path)
    self._run.log_artifact(artifact)
    self._run.finish()


PACKAGES = {
  "wandb": Package(
    Wandb, "wandb login, or export WANDB_MODE=offline and upload later by `wandb sync`"
  ),
  "mlflow": Package(
    Mlflow, "export MLFLOW_TRACKING_URI=http://HOST:5000 or sqlite:////PATH/mlflow.db"
  ),
  "trackio": Package(Trackio, "export TRACKIO_DIR=PATH of a disk with room"),
}
