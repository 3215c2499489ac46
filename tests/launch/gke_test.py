"""launch/gke: the manifests against published schemas, the commands against a stand-in."""

import pathlib
import re
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.launch.desk import LAUNCH, accepted, ok

RENDER = LAUNCH / "gke" / "render.py"
KUBERNETES = "1.33"
KUBECTL = {
  "delete deployment": ["--namespace", "--cascade", "--ignore-not-found"],
  "delete jobset": ["--namespace", "--cascade", "--ignore-not-found"],
  "delete secret": ["--namespace", "--ignore-not-found"],
  "create secret generic": ["--namespace", "--from-file"],
  "logs": ["--namespace", "--follow", "--selector", "--prefix", "--max-log-requests"],
  "apply -f -": [],
}


def _fields(required: tuple[str, ...] = (), **properties) -> dict:
  """JSON schema of an object with these fields and no others."""
  return {
    "type": "object",
    "additionalProperties": False,
    "required": list(required),
    "properties": properties,
  }


# The fields of JobSet that we use, as its published CRD has them (kubernetes-sigs/jobset 0.12,
# config/components/crd/bases); any other is refused here. The Job inside is checked against
# Kubernetes' own schema. No Python package brings the CRD. The manifest was compared with all of it
# once, by hand; what JobSet's webhooks check beyond the CRD was not.
_TEXT, _FLAG, _COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
_RULE = _fields(
  ("action", "name"),
  action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
  name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
  onJobFailureReasons={"type": "array", "items": _TEXT},
)
_REPLICATED = _fields(("name", "template"), name=_TEXT, replicas=_COUNT, template=_fields(spec={}))
JOBSET = _fields(
  ("apiVersion", "kind", "metadata", "spec"),
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata=_fields(name=_TEXT, namespace=_TEXT, labels={}, annotations={}),
  spec=_fields(
    network=_fields(enableDNSHostnames=_FLAG, publishNotReadyAddresses=_FLAG, subdomain=_TEXT),
    failurePolicy=_fields(maxRestarts=_COUNT, rules={"type": "array", "items": _RULE}),
    replicatedJobs={"type": "array", "items": _REPLICATED},
  ),
)


def values_file(tmp_path, change=lambda values: None) -> pathlib.Path:
  """values.yaml with the values that every run must set, changed."""
  values = yaml.safe_load((LAUNCH / "gke" / "values.yaml").read_text())
  values |= {"image": "registry.example/offpolicy-rl:1", "shared_claim": "claim"}
  change(values)
  file = tmp_path / "values.yaml"
  file.write_text(yaml.safe_dump(values))
  return file


def render(values: pathlib.Path) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, RENDER, values], capture_output=True, text=True)


@pytest.fixture(scope="module")
def jobset_and_deployment(tmp_path_factory):
  return list(yaml.safe_load_all(ok(render(values_file(tmp_path_factory.mktemp("gke"))))))


@pytest.fixture
def job(jobset_and_deployment):
  """The Job in the JobSet."""
  (replicated,) = jobset_and_deployment[0]["spec"]["replicatedJobs"]
  spec = replicated["template"]["spec"]
  return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}


@pytest.fixture
def pods(job, jobset_and_deployment):
  """(specification of a learner's pod, of a sampler's)."""
  deployment = jobset_and_deployment[1]
  return job["spec"]["template"]["spec"], deployment["spec"]["template"]["spec"]


def test_manifests_are_what_kubernetes_and_jobset_accept(jobset_and_deployment, job):
  jobset, deployment = jobset_and_deployment
  jsonschema.validate(jobset, JOBSET)
  kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
  kubernetes_validate.validate(job, KUBERNETES, strict=True)
  wrong = job | {"spec": job["spec"] | {"backofLimit": 0}}
  with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
    kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_pods_run_commands_that_the_program_accepts(jobset_and_deployment, pods):
  jobset, _ = jobset_and_deployment
  (learner,), (sampler,) = (pod["containers"] for pod in pods)
  script, *words = learner["args"]
  assert script.endswith('exec offpolicy-rl learner "$@"'), "the program itself gets SIGTERM"
  trains, samples = accepted(words), accepted(sampler["args"])
  assert (trains.role, trains.coordinator, trains.resume) == ("learner", "auto", True)
  name, network = jobset["metadata"]["name"], jobset["spec"]["network"]
  assert samples.learner == f"{name}-learner-0-0.{network['subdomain']}:50051"
  assert trains.weights_dir == samples.weights_dir == f"/shared/{name}/weights"
  assert trains.token_file == samples.token_file == "/certs/token"


def test_the_first_process_keeps_waiting_groups_on_its_own_disk(pods, tmp_path):
  """The script of the learner's container, with its directories in another place."""
  script = pods[0]["containers"][0]["args"][0].replace("/local/", f"{tmp_path}/local/")
  script = script.replace("exec offpolicy-rl", "echo")
  for index in ("0", "1", "0"):  # the last one: started again
    run = tmp_path / f"run{index}"
    env = {"PATH": "/usr/bin:/bin", "RUN": str(run), "JOB_COMPLETION_INDEX": index}
    done = subprocess.run(
      ["bash", "-c", script, "learner", "--a=b c"], env=env, capture_output=True, text=True
    )
    assert ok(done) == "learner --a=b c\n"
    assert (run / "groups").is_symlink() == (index == "0")
  assert (tmp_path / "run0" / "groups").resolve() == tmp_path / "local" / "groups"


def test_pods_get_tpus_time_to_end_and_their_secrets(job, pods):
  learner, sampler = pods
  assert job["spec"]["parallelism"] == job["spec"]["completions"] == 16
  for pod, topology in ((learner, "8x8"), (sampler, "2x2")):
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == 4
  assert sampler["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
  flags = learner["containers"][0]["args"]
  (grace,) = [f.split("=")[1] for f in flags if f.startswith("--config.sampler.grace_seconds=")]
  assert sampler["terminationGracePeriodSeconds"] >= float(grace) + 10
  secrets = [v["secret"] for pod in pods for v in pod["volumes"] if "secret" in v]
  assert [s["secretName"] for s in secrets] == ["offpolicy-rl-learner", "offpolicy-rl-sampler"]
  assert all(s["defaultMode"] == 0o440 for s in secrets)


def test_only_the_first_process_is_asked_how_it_is(pods):
  container = pods[0]["containers"][0]
  startup, liveness = container["startupProbe"], container["livenessProbe"]
  assert startup["exec"] == liveness["exec"]
  assert (startup["failureThreshold"], liveness["failureThreshold"]) == (120, 20)
  probe = liveness["exec"]["command"][2]
  asked = lambda index: subprocess.run(
    ["bash", "-c", probe.replace("grpc_health_probe", "echo")],
    capture_output=True,
    text=True,
    env={"JOB_COMPLETION_INDEX": index, "PATH": "/usr/bin:/bin"},
  )
  assert ok(asked("1")) == ""
  flags = re.findall(r"-([-a-z]+)(?:=(\S+))?(?: |$)", ok(asked("0")))
  assert dict(flags)["addr"] == "localhost:50051" and dict(flags)["tls"] == ""
  assert dict(flags)["tls-client-cert"] == "/certs/server.pem"


def test_samplers_without_spot(tmp_path):
  file = values_file(tmp_path, lambda v: v["samplers"].update(spot=False, flags=["--verbose"]))
  _, deployment = yaml.safe_load_all(ok(render(file)))
  kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
  pod = deployment["spec"]["template"]["spec"]
  assert "tolerations" not in pod and "cloud.google.com/gke-spot" not in pod["nodeSelector"]
  assert accepted(pod["containers"][0]["args"]).verbose


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda v: v.update(image=""), "image: got '', expected a value"),
    (lambda v: v["learner"].pop("hosts"), "learner.hosts: missing, expected such as 16"),
    (lambda v: v["samplers"].update(replica=3), "samplers.replica: unknown, expected one of repli"),
    (lambda v: v["learner"].update(hosts="16"), "learner.hosts: got '16', expected int"),
    (lambda v: v["learner"].update(hosts=4), "learner.topology: got '8x8', expected a product"),
    (lambda v: v.update(name="My_Run"), "name: got 'My_Run', expected at most 32"),
  ],
)
def test_wrong_values_are_named(tmp_path, change, message):
  done = render(values_file(tmp_path, change))
  assert done.returncode == 2 and message in done.stderr and done.stdout == ""


@pytest.fixture
def gke(desk):
  """gke.sh with a stand-in for kubectl."""
  desk.stub("kubectl", KUBECTL)
  return lambda *words: desk.run("gke/gke.sh", *words, PYTHON=sys.executable)


def test_secrets_are_made_and_never_printed(desk, gke, tmp_path):
  certs = tmp_path / "certs"
  done = gke("secrets", str(values_file(tmp_path)), str(certs))
  assert (certs / "token").read_text().strip() not in ok(done) + done.stderr
  created = [call for call in desk.argvs("kubectl") if call[1] == "create"]
  assert [call[4] for call in created] == ["offpolicy-rl-learner", "offpolicy-rl-sampler"]
  files = [[pathlib.Path(f).name for f in call[5:]] for call in created]
  assert files == [
    ["ca.pem", "server.pem", "server.key", "token"],
    ["ca.pem", "client.pem", "client.key", "token"],
  ]
  names = ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", certs / "server.pem"]
  shown = subprocess.run(names, capture_output=True, text=True, check=True).stdout
  assert "DNS:offpolicy-rl-learner-0-0.offpolicy-rl" in shown


def test_start_logs_and_delete(desk, gke, tmp_path):
  values = str(values_file(tmp_path))
  ok(gke("start", values))
  (applied,) = desk.calls("kubectl")
  assert applied["argv"] == ["apply", "-f", "-"]
  kinds = [manifest["kind"] for manifest in yaml.safe_load_all(applied["stdin"])]
  assert kinds == ["JobSet", "Deployment"]
  for command in (["logs", values], ["logs", values, "sampler"], ["delete", values]):
    ok(gke(*command))
  done = [call[1:] for call in desk.argvs("kubectl")[1:]]
  assert done[0][:2] == ["logs", "job/offpolicy-rl-learner-0"]
  assert "--selector=run=offpolicy-rl,role=sampler" in done[1]
  assert [call[:3] for call in done[2:]] == [
    ["delete", "deployment", "offpolicy-rl-sampler"],
    ["delete", "jobset", "offpolicy-rl"],
    ["delete", "secret", "offpolicy-rl-learner"],
  ]
  assert "--cascade=foreground" in done[2] and "--cascade=foreground" in done[3]


def test_a_dry_run_prints_and_runs_nothing(desk, gke, tmp_path):
  values, certs = str(values_file(tmp_path)), tmp_path / "certs"
  for command in (["secrets", values, str(certs)], ["start", values], ["delete", values]):
    assert "kubectl" in ok(gke("--dry-run", *command))
  assert desk.argvs("kubectl") == [] and not certs.exists()


def test_what_is_missing_is_named(desk, gke, tmp_path):
  for words, message in (
    (["begin"], "got begin, expected secrets"),
    (["start"], "VALUES: missing, expected a file"),
    (["secrets", str(values_file(tmp_path))], "CERTS: missing, expected the directory"),
    (["start", str(LAUNCH / "gke" / "values.yaml")], "image: got ''"),
  ):
    done = gke(*words)
    assert done.returncode == 2 and message in done.stderr, words
  assert desk.argvs("kubectl") == []
