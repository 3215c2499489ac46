"""launch/tpu_mig.sh: TPU VMs of Compute Engine, against a stand-in for gcloud."""

import shlex

import pytest

from tests.launch.desk import accepted, ok
from tests.launch.tpu_vm_test import COMMANDS, host_desk, remote_words, service
from tests.params import some

GROUPS, TEMPLATES = "compute instance-groups managed", "compute instance-templates"
POLICIES = "compute resource-policies"
GCLOUD = {
  f"{GROUPS} list": ["--zones", "--filter", "--format", "--project"],
  f"{GROUPS} list-instances": ["--format", "--zone", "--project"],
  f"{GROUPS} create": [
    "--template",
    "--size",
    "--default-action-on-vm-failure",
    "--workload-policy",
    "--zone",
    "--project",
  ],
  f"{GROUPS} wait-until": ["--stable", "--zone", "--project"],
  f"{GROUPS} delete": ["--quiet", "--zone", "--project"],
  f"{TEMPLATES} create": [
    "--machine-type",
    "--maintenance-policy",
    "--image-project",
    "--image-family",
    "--boot-disk-size",
    "--boot-disk-type",
    "--scopes",
    "--provisioning-model",
    "--instance-termination-action",
    "--reservation-affinity",
    "--reservation",
    "--project",
  ],
  f"{TEMPLATES} delete": ["--quiet", "--project"],
  f"{POLICIES} list": ["--filter", "--format", "--project"],
  f"{POLICIES} create workload-policy": [
    "--type",
    "--accelerator-topology",
    "--region",
    "--project",
  ],
  f"{POLICIES} delete": ["--region", "--quiet", "--project"],
  "compute ssh": ["--zone", "--command", "--project"],
  "compute scp": ["--zone", "--project"],
}
SETTINGS = {"NAME": "r", "PROJECT": "p", "ZONE": "us-east5-b", "SHARED": "bucket"}
# The slice's order is not that of the names.
HOSTS = {
  "list-instances r-sampler": ["r-sampler-1\nr-sampler-2"],
  "list-instances": ["r-xyz\nr-abc"],
  "ssh r-xyz tpu_host.sh worker": ["1 10.0.0.8"],
  "ssh r-abc tpu_host.sh worker": ["0 10.0.0.7"],
}


@pytest.fixture
def mig(desk):
  """tpu_mig.sh where both groups are there."""
  for tool in ("awk", "sort"):
    desk.link(tool)
  desk.stub("gcloud", GCLOUD, HOSTS)
  return lambda *words, **env: desk.run("tpu_mig.sh", *words, **(SETTINGS | env))


def created(desk) -> dict[tuple[str, str], list[str]]:
  """(kind, name) -> flags of what was created."""
  calls = [call for call in desk.argvs("gcloud") if "create" in call]
  words = [[word for word in call if not word.startswith("--")] for call in calls]
  return {(w[1], w[-1]): c[len(w) :] for w, c in zip(words, calls, strict=True)}


def test_create_makes_one_slice_and_single_spot_hosts(desk, mig):
  ok(mig("create", TOPOLOGY="2x4"))
  made = created(desk)
  assert list(made) == [
    ("resource-policies", "r"),
    ("instance-templates", "r"),
    ("instance-groups", "r"),
    ("instance-templates", "r-sampler"),
    ("instance-groups", "r-sampler"),
  ]
  assert {"--accelerator-topology=2x4", "--region=us-east5"} <= set(made["resource-policies", "r"])
  policy = "--workload-policy=projects/p/regions/us-east5/resourcePolicies/r"
  assert {"--size=2", "--template=r", policy} <= set(made["instance-groups", "r"])
  assert policy not in made["instance-groups", "r-sampler"]
  assert "--provisioning-model=SPOT" in made["instance-templates", "r-sampler"]
  assert not any("provisioning" in flag for flag in made["instance-templates", "r"])
  assert desk.argvs("gcloud")[-1][:6] == [*GROUPS.split(), "wait-until", "r", "--stable"]


@pytest.mark.parametrize(
  ("machine", "topology", "hosts", "image"),
  some(
    [("tpu7x-standard-4t", "2x2x2", 2, "ubuntu-accel-2404-amd64-tpu-tpu7x")],
    [
      ("ct5p-hightpu-4t", "2x2x4", 4, "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"),
      ("ct6e-standard-4t", "4x4", 4, "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"),
    ],
  ),
)
def test_generations(desk, mig, machine, topology, hosts, image):
  ok(mig("create", MACHINE=machine, TOPOLOGY=topology, CAPACITY="reservation/mine"))
  made = created(desk)
  template = set(made["instance-templates", "r"])
  assert {f"--machine-type={machine}", f"--image-family={image}"} <= template
  assert {"--reservation=mine", "--reservation-affinity=specific"} <= template
  assert f"--size={hosts}" in made["instance-groups", "r"]


def test_what_is_there_is_not_made_again(desk, mig):
  there = {f"{GROUPS} list name=r-sampler": ["r-sampler"], f"{GROUPS} list name=r ": ["r"]}
  desk.stub("gcloud", GCLOUD, there | {f"{POLICIES} list": ["r"]})
  assert "r: is there" in ok(mig("create")) and created(desk) == {}


def test_the_learner_is_numbered_as_its_slice_is(desk, mig, tmp_path):
  flags = ["--config=configs/test.py", '--config.task.mixture={"a b": 1}']
  ok(mig("learner", *flags, TOPOLOGY="2x4"))
  ok(mig("samplers", TOPOLOGY="2x4"))
  started = [
    call for call in desk.argvs("gcloud") if any("--learner=" in w or "--config" in w for w in call)
  ]
  assert [call[2] for call in started] == ["r-abc", "r-xyz", "r-sampler-1", "r-sampler-2"]
  for index, call in enumerate(started[:2]):
    words = remote_words(call)
    assert words[-2:] == flags
    _, trains = service(tmp_path / f"learner{index}", *words[2:])
    assert (trains.coordinator, trains.num_processes) == ("10.0.0.7:8482", 2)
    assert (trains.process_id, trains.resume) == (index, True)
  assert accepted(["sampler", *remote_words(started[2])[5:]]).learner == "10.0.0.7:50051"


def test_a_host_tells_its_number_and_address(tmp_path):
  """Some images call the number worker-id, some agent-worker-number."""
  for key in ("worker-id", "agent-worker-number"):
    host = host_desk(tmp_path / key)
    answers = f"*attributes/{key}) echo 3 ;; *interfaces/0/ip) echo 10.0.0.9 ;; *) exit 22 ;;"
    curl = f'case "$*" in {answers} esac'
    (host.folder / "curl").write_text(f"#!/usr/bin/env bash\n{curl}\n")
    (host.folder / "curl").chmod(0o755)
    assert ok(host.run("tpu_host.sh", "worker", HOME=str(tmp_path / key))) == "3 10.0.0.9\n"


def test_a_host_that_does_not_answer_ends_the_start(desk, mig):
  desk.stub("gcloud", GCLOUD | {"compute ssh": ["--zone"]}, HOSTS)  # refuses --command
  done = mig("learner", "--config=x.py")
  assert done.returncode != 0 and len([c for c in desk.argvs("gcloud") if "ssh" in c]) == 1


def test_delete_can_leave_the_learner(desk, mig):
  ok(mig("delete", "samplers"))
  assert [call[-4:][0] for call in desk.argvs("gcloud")] == ["r-sampler", "delete"]
  ok(mig("delete"))
  assert desk.argvs("gcloud")[-1][:4] == [*POLICIES.split(), "delete", "r"]


@pytest.mark.parametrize("command", some(COMMANDS[:1], COMMANDS[1:]))
def test_a_dry_run_prints_and_runs_nothing(desk, mig, command, tmp_path):
  flags, certs = ["--config=x.py"] if command == "learner" else [], tmp_path / "certs"
  lines = [
    shlex.split(line)
    for line in ok(mig(command, *flags, "--dry-run", CERTS=str(certs))).splitlines()
  ]
  assert desk.argvs("gcloud") == [] and not certs.exists()
  assert {line[0] for line in lines} <= {"gcloud", "bash", "launch/make_certs.sh"}
  printed = [line for line in lines if line[0] == "gcloud"]
  assert printed
  for line in printed:  # each is a command that the tool knows
    ok(desk.run(desk.folder / "gcloud", *line[1:]))
    assert "tpus" not in line, "the Cloud TPU API is another one"


def test_a_word_too_many_deletes_nothing(desk, mig):
  for word in ("sampler", "--dryrun"):
    done = mig("delete", word)
    assert done.returncode == 2 and f"delete: got {word}, expected samplers" in done.stderr
  assert desk.argvs("gcloud") == []


@pytest.mark.parametrize(
  ("env", "message"),
  [
    ({"PROJECT": ""}, "PROJECT: missing"),
    ({"TOPOLOGY": "16"}, "TOPOLOGY: got 16, expected such as 4x4"),
    ({"MACHINE": "n2-standard-8"}, "MACHINE: got n2-standard-8, expected a TPU machine"),
    ({"MACHINE": "ct9-standard-4t"}, "MACHINE: got ct9-standard-4t, expected ct5p-..."),
    ({"CAPACITY": "cheap"}, "CAPACITY: got cheap, expected on-demand, spot or reservation/NAME"),
  ],
)
def test_what_is_wrong_is_named(desk, mig, env, message):
  done = mig("create", **env)
  assert done.returncode == 2 and message in done.stderr
  assert created(desk).keys() <= {("resource-policies", "r")}
