"""launch/gcluster.sh against stand-ins for gcluster and gcloud."""

import pathlib
import shlex

import pytest

from tests.launch.desk import accepted, ok

# Flags of `gcluster job submit` that a run may need (GoogleCloudPlatform/cluster-toolkit 1.95).
FLAGS = [
  "--name",
  "--command",
  "--compute-type",
  "--image",
  "--mount",
  "--topology",
  "--num-slices",
  "--restarts",
  "--grace-period",
  "--queue",
  "--priority",
  "--service-account",
  "--cluster",
  "--location",
  "--project",
  "--dry-run-out",
  "--gke-disable-parallel-containers",
]
CARD = "--config=configs/gsm8k_qwen3_8b.py"


@pytest.fixture
def submit(desk, tmp_path):
  """Runs the script with all it needs, other settings before; the learner's flags are CARD."""
  desk.stub("gcluster", {"job submit": FLAGS})
  desk.stub("gcloud", {"storage cp": []})
  certs = tmp_path / "certs"
  certs.mkdir()
  (certs / "token").touch()
  given = {
    "name": "q",
    "image": "i",
    "mount": "gs://b:/shared:rw",
    "compute-type": "v6e-16",
    "cluster": "c",
    "queue": "lq",
    "certs": str(certs),
  }

  def run(*words: str, flags=(CARD,), **changed: str | None):
    settings = given | {name.replace("_", "-"): value for name, value in changed.items()}
    written = [f"--{name}={value}" for name, value in settings.items() if value is not None]
    return desk.run("gcluster.sh", *words, *written, "--", *flags)

  return run


def jobs(desk) -> dict[str, dict[str, str]]:
  """Name of each submitted job -> its flags."""
  found = {}
  for call in desk.argvs("gcluster"):
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in call[2:])
    found[flags["name"]] = flags
  return found


def test_one_job_trains_and_the_others_sample(desk, submit):
  mixture = '--config.task.mixture={"a b": 1}'
  ok(submit(topology="4x4", num_slices="2", flags=(CARD, mixture)))
  found = jobs(desk)
  assert list(found) == ["q", "q-s0", "q-s1"]
  learner, sampler = found["q"], found["q-s0"]
  assert all(
    (job["queue"], job["cluster"], job["image"]) == ("lq", "c", "i") for job in found.values()
  )
  assert (learner["compute-type"], learner["topology"], learner["num-slices"]) == (
    "v6e-16",
    "4x4",
    "2",
  )
  assert sampler["compute-type"] == "v6e-4" and "topology" not in sampler
  assert learner["grace-period"] == "10m", "to leave a checkpoint"

  exec_, script, run, *words = shlex.split(learner["command"])
  assert (exec_, script, run, words[-1]) == ("exec", "/app/launch/pod.sh", "/tmp/run", mixture)
  trains = accepted(["learner", *words])
  exec_, program, *words = shlex.split(sampler["command"])
  samples = accepted(words)
  assert (exec_, program) == ("exec", "offpolicy-rl"), "it gets SIGTERM itself"
  assert samples.learner == "q-main-job-0-0.q:50051" and trains.listen == "0.0.0.0:50051"
  assert trains.weights_dir == samples.weights_dir == "/shared/q/weights"
  assert trains.token_file == samples.token_file == "/shared/q/certs/token"


def test_credentials_go_to_the_bucket_and_the_authoritys_key_stays(desk, submit):
  ok(submit())
  (call,) = desk.argvs("gcloud")
  assert call[:2] == ["storage", "cp"] and call[-1] == "gs://b/q/certs/"
  names = [pathlib.Path(file).name for file in call[2:-1]]
  assert sorted(names) == [
    "ca.pem",
    "client.key",
    "client.pem",
    "server.key",
    "server.pem",
    "token",
  ]


def test_the_run_lies_on_a_file_system_but_not_on_a_bucket(desk, submit):
  ok(submit(mount="claim:/data:rw", samplers="0"))
  assert shlex.split(jobs(desk)["q"]["command"])[2] == "/data/q/run"
  assert desk.argvs("gcloud") == []


def test_one_process_serves_all_chips_of_a_tpu7x(desk, submit):
  ok(submit(compute_type="tpu7x-16", topology="2x2x2"))
  found = jobs(desk)
  assert "gke-disable-parallel-containers" in found["q"]
  assert "gke-disable-parallel-containers" not in found["q-s0"]


def test_manifests_instead_of_jobs(desk, submit, tmp_path):
  ok(submit(dry_run_out=str(tmp_path / "out"), samplers="1"))
  written = [job["dry-run-out"] for job in jobs(desk).values()]
  assert written == [f"{tmp_path}/out/q.yaml", f"{tmp_path}/out/q-s0.yaml"]
  assert (tmp_path / "out").is_dir() and desk.argvs("gcloud") == []


def test_a_dry_run_prints_and_runs_nothing(desk, submit, tmp_path):
  certs = tmp_path / "none"
  lines = [shlex.split(line) for line in ok(submit("--dry-run", certs=str(certs))).splitlines()]
  assert desk.argvs("gcluster") == [] == desk.argvs("gcloud") and not certs.exists()
  made, *others = lines
  assert made[1:] == [str(certs), "q-main-job-0-0.q"]
  assert [line[0] for line in others] == ["gcloud", *["gcluster"] * 3]
  for program, *words in others:  # each is a command that the tool knows
    ok(desk.run(desk.folder / program, *words))


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"name": "a" * 25}, "expected at most 24"),
    ({"mount": "gs://b:/shared"}, "--mount: got 'gs://b:/shared', expected such as gs://B"),
    ({"compute_type": None}, "--compute-type: missing, expected such as v6e-16"),
    ({"samplers": "some"}, "--samplers: got some, expected a number"),
    ({"flags": ()}, "expected at least --config=FILE"),
  ],
)
def test_what_is_missing_is_named(desk, submit, changed, message):
  done = submit(**changed)
  assert done.returncode == 2 and message in done.stderr
  assert desk.argvs("gcluster") == []
