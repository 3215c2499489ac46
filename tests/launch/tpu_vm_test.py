"""launch/tpu_vm.sh and what it runs on the hosts, against stand-ins for gcloud and systemd."""

import pathlib
import shlex
import shutil
import subprocess

import pytest

from tests.launch.desk import LAUNCH, Desk, accepted, ok
from tests.params import some

QUEUED, VM = "compute tpus queued-resources", "compute tpus tpu-vm"
GCLOUD = {
  f"{QUEUED} list": ["--filter", "--format", "--zone"],
  f"{QUEUED} create": [
    "--node-id",
    "--accelerator-type",
    "--runtime-version",
    "--spot",
    "--async",
    "--zone",
  ],
  f"{QUEUED} delete": ["--force", "--quiet", "--async", "--zone"],
  f"{VM} ssh": ["--worker", "--command", "--zone"],
  f"{VM} scp": ["--worker", "--zone"],
  f"{VM} describe": ["--format", "--zone"],
}
SYSTEMD_RUN = ["--unit", "--uid", "--setenv", "--working-directory", "--property"]
SETTINGS = {"NAME": "r", "ZONE": "z", "SHARED": "bucket", "POLL_SECONDS": "0"}
COMMANDS = ["create", "setup", "learner", "samplers", "logs", "stop", "delete"]


def states(**found: str | list[str]) -> dict:
  """What gcloud answers: the states of each name, one per question; others are not there."""
  told = {name.replace("_", "-"): [s] if isinstance(s, str) else s for name, s in found.items()}
  known = {f"{QUEUED} list --filter=name~/{name}$ ": said for name, said in told.items()}
  return known | {f"{QUEUED} list": [""], f"{VM} describe r": ["10.0.0.7"]}


def changing(desk) -> list[list[str]]:
  """The calls that do more than ask, from the verb on."""
  return [call[3:] for call in desk.argvs("gcloud") if call[3] not in ("list", "describe")]


def test_create_requests_what_is_not_there_and_waits(desk):
  waiting = ["", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
  desk.stub("gcloud", GCLOUD, states(r=waiting, r_sampler_0="SUSPENDED", r_sampler_1="ACTIVE"))
  output = ok(desk.run("tpu_vm.sh", "create", **SETTINGS))
  learner, lost, again = changing(desk)
  assert learner[:2] == ["create", "r"] and "--spot" not in learner
  assert {"--node-id=r", "--accelerator-type=v5litepod-16"} <= set(learner)
  assert lost == ["delete", "r-sampler-0", "--force", "--quiet", "--zone=z"]
  assert again[:3] == ["create", "r-sampler-0", "--node-id=r-sampler-0"] and "--spot" in again
  assert "r-sampler-1: ACTIVE" in output and "r: PROVISIONING, waiting" in output


@pytest.mark.parametrize(
  ("kind", "runtime"),
  some(
    [("v6e-16", "v2-alpha-tpuv6e")],
    [("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v5p-16", "v2-alpha-tpuv5")],
  ),
)
def test_each_generation_has_its_runtime(desk, kind, runtime):
  desk.stub("gcloud", GCLOUD, states(r=["", "ACTIVE"]))
  ok(desk.run("tpu_vm.sh", "create", **SETTINGS, TYPE=kind, SAMPLERS="0"))
  (call,) = changing(desk)
  assert {f"--accelerator-type={kind}", f"--runtime-version={runtime}"} <= set(call)


def test_a_generation_that_the_api_lacks_is_refused(desk):
  desk.stub("gcloud", GCLOUD)
  done = desk.run("tpu_vm.sh", "create", **SETTINGS, TYPE="tpu7x-16")
  assert done.returncode == 2 and "TYPE: got tpu7x-16, which this API does not have" in done.stderr
  assert desk.argvs("gcloud") == []


def test_a_request_that_fails_is_told(desk):
  desk.stub("gcloud", GCLOUD, states(r=["", "PROVISIONING", "FAILED"]))
  done = desk.run("tpu_vm.sh", "create", **SETTINGS, SAMPLERS="0")
  assert done.returncode == 2 and "r: FAILED; run create again" in done.stderr


@pytest.fixture
def checkout(tmp_path):
  """A project that git knows, with a key that it does not."""
  project = tmp_path / "project"
  shutil.copytree(LAUNCH, project / "launch")
  (project / "setup.py").write_text("committed")
  git = ["git", "-c", "init.defaultBranch=main"]
  subprocess.run([*git, "init", "-q"], cwd=project, check=True)
  subprocess.run([*git, "add", "."], cwd=project, check=True)
  (project / "setup.py").write_text("changed since")
  (project / "own.key").write_text("secret")
  return project


def test_setup_copies_the_project_and_to_each_role_its_credentials(desk, checkout, tmp_path):
  desk.stub("gcloud", GCLOUD, states(r="ACTIVE", r_sampler_0="ACTIVE", r_sampler_1="SUSPENDED"))
  done = desk.run(checkout / "launch" / "tpu_vm.sh", "setup", **SETTINGS)
  assert "r-sampler-1: SUSPENDED, left out" in ok(done)
  assert (checkout / "certs" / "token").read_text().strip() not in done.stdout + done.stderr
  calls = changing(desk)
  assert [call[0] for call in calls] == ["ssh", "scp", "scp", "ssh", "ssh"] * 2
  assert all("--worker=all" in call for call in calls)
  sent = {c[-3]: [pathlib.Path(f).name for f in c[1:-3]] for c in calls if c[0] == "scp"}
  assert sent == {
    "r:project.tgz": ["project.tgz"],
    "r:certs": ["ca.pem", "server.pem", "server.key", "token"],
    "r-sampler-0:project.tgz": ["project.tgz"],
    "r-sampler-0:certs": ["ca.pem", "client.pem", "client.key", "token"],
  }
  there = tmp_path / "there"
  there.mkdir()
  subprocess.run(["tar", "-xzf", checkout / "build" / "project.tgz", "-C", there], check=True)
  assert (there / "setup.py").read_text() == "changed since"
  assert (there / "launch" / "tpu_host.sh").exists() and not (there / "own.key").exists()


def remote_words(call: list[str]) -> list[str]:
  """The words that the remote shell makes of --command."""
  (text,) = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
  return shlex.split(text)


def host_desk(home: pathlib.Path) -> Desk:
  """A host, as far as its script sees."""
  home.mkdir()
  (home / "offpolicy_rl").mkdir()
  host = Desk(home / "bin")
  host.stub("gcsfuse", {"bucket": ["--implicit-dirs", "--rename-dir-limit"]})
  host.stub("systemd-run", {"": SYSTEMD_RUN})
  host.stub("systemctl", {"reset-failed offpolicy-rl": [], "stop offpolicy-rl": []})
  host.stub("mount", {"": []})
  for name, text in (("sudo", '"$@"'), ("mountpoint", "exit 1")):  # nothing is mounted
    (host.folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (host.folder / name).chmod(0o755)
  return host


def service(home: pathlib.Path, *words: str) -> tuple[set[str], object]:
  """(flags of the service that a host starts, what offpolicy-rl reads from its command line)."""
  host = host_desk(home)
  ok(host.run("tpu_host.sh", *words, HOME=str(home)))
  assert host.argvs("gcsfuse")[0][2:] == ["bucket", f"{home}/shared"]
  (call,) = host.argvs("systemd-run")
  at = call.index(f"{home}/offpolicy_rl/.venv/bin/offpolicy-rl")
  return set(call[:at]), accepted(call[at + 1 :])


def test_the_learner_starts_on_all_hosts_and_samplers_find_it(desk, tmp_path):
  desk.stub("gcloud", GCLOUD, states(r="ACTIVE", r_sampler_0="ACTIVE"))
  flags = ["--config=configs/test.py", '--config.task.mixture={"a b": 1}']
  ok(desk.run("tpu_vm.sh", "learner", *flags, **SETTINGS))
  ok(desk.run("tpu_vm.sh", "samplers", **SETTINGS))
  learner, sampler = changing(desk)
  assert learner[:3] == ["ssh", "r", "--worker=all"]
  assert sampler[:3] == ["ssh", "r-sampler-0", "--worker=0"]
  words = remote_words(learner)
  assert words[:2] == ["bash", "offpolicy_rl/launch/tpu_host.sh"] and words[-2:] == flags

  home = tmp_path / "learner"
  unit, trains = service(home, *words[2:])
  # The verifiers must not get the signal; a process that was told to stop must not start again.
  assert {"--property=KillMode=mixed", "--property=Restart=on-failure"} <= unit
  assert (trains.role, trains.coordinator, trains.resume) == ("learner", "auto", True)
  assert (trains.listen, trains.config) == ("0.0.0.0:50051", "configs/test.py")
  assert trains.checkpoint_dir == f"{home}/shared/r/checkpoints"
  assert trains.weights_dir == f"{home}/shared/r/weights" and trains.run_dir == f"{home}/run-r"
  assert (trains.tls_cert, trains.tls_client_ca) == (
    f"{home}/certs/server.pem",
    f"{home}/certs/ca.pem",
  )

  home = tmp_path / "sampler"
  _, samples = service(home, *remote_words(sampler)[2:])
  assert (samples.role, samples.learner) == ("sampler", "10.0.0.7:50051")
  assert samples.tls_server_name == "learner", "as the certificate says"
  assert samples.weights_dir == f"{home}/shared/r/weights"
  assert (samples.tls_ca, samples.token_file) == (f"{home}/certs/ca.pem", f"{home}/certs/token")


def test_a_directory_of_nfs_is_mounted_and_a_service_stopped(tmp_path):
  home = tmp_path / "host"
  host = host_desk(home)
  learner = ["learner", "10.1.1.1:/share", "r", "--config=configs/test.py"]
  for _ in "01":  # on the second host, or for the second time, the link is there
    ok(host.run("tpu_host.sh", *learner, HOME=str(home)))
  assert f"--run_dir={home}/shared/r/run" in host.argvs("systemd-run")[0]
  assert (home / "shared" / "r" / "run" / "groups").readlink() == home / "groups-r"
  ok(host.run("tpu_host.sh", "stop", HOME=str(home)))
  assert host.argvs("mount")[0] == ["-t", "nfs", "10.1.1.1:/share", f"{home}/shared"]
  assert host.argvs("systemctl")[-1] == ["stop", "offpolicy-rl"]


def test_setup_on_a_host_that_has_gcsfuse(tmp_path):
  home = tmp_path / "host"
  host = host_desk(home)
  (home / "certs").mkdir()
  (home / "certs" / "token").touch(0o644)
  install = home / "offpolicy_rl" / "launch" / "install.sh"
  install.parent.mkdir()
  install.write_text('#!/usr/bin/env bash\necho "$@" > installed\n')
  install.chmod(0o755)
  ok(host.run("tpu_host.sh", "setup", "tpu,math", "bucket", HOME=str(home)))
  assert (home / "offpolicy_rl" / "installed").read_text() == "--get-python .venv tpu,math\n"
  assert (home / "certs" / "token").stat().st_mode & 0o777 == 0o600
  assert len(host.argvs("gcsfuse")) == 1


def test_samplers_stop_before_the_learner_and_all_is_deleted(desk):
  desk.stub("gcloud", GCLOUD, states(r="ACTIVE", r_sampler_0="ACTIVE", r_sampler_1="ACTIVE"))
  ok(desk.run("tpu_vm.sh", "stop", **SETTINGS))
  ok(desk.run("tpu_vm.sh", "logs", "r-sampler-1", **SETTINGS))
  ok(desk.run("tpu_vm.sh", "delete", **SETTINGS))
  assert [" ".join(call[:2]) for call in changing(desk)] == [
    "ssh r-sampler-0",
    "ssh r-sampler-1",
    "ssh r",
    "ssh r-sampler-1",
    "delete r-sampler-0",
    "delete r-sampler-1",
    "delete r",
  ]
  said = [remote_words(call)[-1] for call in changing(desk) if call[0] == "ssh"]
  assert said == ["stop", "stop", "stop", "logs"]


@pytest.mark.parametrize("command", some(COMMANDS[:1], COMMANDS[1:]))
def test_a_dry_run_prints_and_runs_nothing(desk, command, tmp_path):
  desk.stub("gcloud", GCLOUD)
  flags, certs = ["--config=x.py"] if command == "learner" else [], tmp_path / "certs"
  done = desk.run("tpu_vm.sh", command, *flags, "--dry-run", CERTS=str(certs), **SETTINGS)
  lines = [shlex.split(line) for line in ok(done).splitlines()]
  assert desk.argvs("gcloud") == [] and not certs.exists()
  assert {line[0] for line in lines} <= {"gcloud", "bash", "launch/make_certs.sh"}
  printed = [line for line in lines if line[0] == "gcloud"]
  assert printed
  for line in printed:  # each is a command that the tool knows
    ok(desk.run(desk.folder / "gcloud", *line[1:]))


@pytest.mark.parametrize(
  ("arguments", "missing", "message"),
  [
    (["fly"], "", "got fly, expected create, setup"),
    (["create"], "NAME", "NAME: missing, expected a name"),
    (["create"], "ZONE", "ZONE: missing, expected the zone"),
    (["learner", "--config=x.py"], "SHARED", "SHARED: missing, expected a bucket's name or HOST"),
    (["learner"], "", "learner: got no flags, expected at least --config=FILE"),
    (["delete", "--dryrun"], "", "delete: got --dryrun, expected nothing behind it"),
  ],
)
def test_what_is_missing_is_named(desk, arguments, missing, message):
  desk.stub("gcloud", GCLOUD)
  env = {name: value for name, value in SETTINGS.items() if name != missing}
  done = desk.run("tpu_vm.sh", *arguments, **env)
  assert done.returncode == 2 and message in done.stderr
  assert desk.argvs("gcloud") == []
