"""launch/gke: the manifests against published schemas, the commands against a stand-in."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import jsonschema
import kubernetes_validate
import pytest
import yaml

from offpolicy_rl.sandbox import outcomes
from tests.launch.desk import LAUNCH, accepted, ok
from tests.launch.schemas import AGENT_SANDBOX, JOBSET, KUEUE
from tests.params import some

_SPEC = importlib.util.spec_from_file_location("render", LAUNCH / "gke" / "render.py")
render = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(render)
KUBERNETES = "1.33"
KUBECTL = {
  "delete deployment": ["--namespace", "--cascade", "--ignore-not-found"],
  "delete jobset": ["--namespace", "--cascade", "--ignore-not-found"],
  "delete secret": ["--namespace", "--ignore-not-found"],
  "create secret generic": ["--namespace", "--from-file"],
  "logs": ["--namespace", "--follow", "--selector", "--prefix", "--max-log-requests"],
  "scale deployment": ["--namespace", "--replicas"],
  "apply -f -": [],
}
GCLOUD = {
  "container node-pools create": [
    "--project",
    "--cluster",
    "--location",
    "--node-locations",
    "--workload-metadata",
    "--scopes",
    "--machine-type",
    "--num-nodes",
    "--tpu-topology",
    "--placement-policy",
    "--spot",
    "--reservation-affinity",
    "--reservation",
    "--enable-autoscaling",
    "--min-nodes",
    "--max-nodes",
  ],
  "compute resource-policies create workload-policy": [
    "--project",
    "--region",
    "--type",
    "--accelerator-topology",
  ],
}
NODE_POOLS = ["offpolicy-rl-0", "offpolicy-rl-1", "offpolicy-rl-sampler"]
CLUSTER = {"project": "p", "name": "c", "location": "us-east5", "zone": "us-east5-b"}


def values_file(tmp_path, change=lambda values: None) -> pathlib.Path:
  """values.yaml with the values that every run must set, changed."""
  values = yaml.safe_load((LAUNCH / "gke" / "values.yaml").read_text())
  values |= {"image": "registry.example/offpolicy-rl:1", "shared": "claim"}
  change(values)
  file = tmp_path / "values.yaml"
  file.write_text(yaml.safe_dump(values))
  return file


def manifests(values: pathlib.Path) -> list[dict]:
  """JobSet and Deployment, in order as Kubernetes and JobSet have it."""
  jobset, deployment = yaml.safe_load_all(render.render(render.load(values), "manifest.yaml.j2"))
  jsonschema.validate(jobset, JOBSET)
  kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
  kubernetes_validate.validate(job_of(jobset), KUBERNETES, strict=True)
  return [jobset, deployment]


def job_of(jobset: dict) -> dict:
  """The Job in a JobSet."""
  (replicated,) = jobset["spec"]["replicatedJobs"]
  spec = replicated["template"]["spec"]
  return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}


def pod_of(workload: dict) -> dict:
  """Specification of the pods of a Job or Deployment."""
  return workload["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def jobset_and_deployment(tmp_path_factory):
  return manifests(values_file(tmp_path_factory.mktemp("gke")))


@pytest.fixture
def job(jobset_and_deployment):
  return job_of(jobset_and_deployment[0])


@pytest.fixture
def pods(job, jobset_and_deployment):
  """(specification of a learner's pod, of a sampler's)."""
  return pod_of(job), pod_of(jobset_and_deployment[1])


def test_manifests_are_what_kubernetes_and_jobset_accept(jobset_and_deployment, job):
  assert [manifest["kind"] for manifest in jobset_and_deployment] == ["JobSet", "Deployment"]
  wrong = job | {"spec": job["spec"] | {"backofLimit": 0}}
  with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
    kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_pods_run_commands_that_the_program_accepts(jobset_and_deployment, pods):
  jobset, _ = jobset_and_deployment
  (learner,), (sampler,) = (pod["containers"] for pod in pods)
  assert learner["command"] == ["/app/launch/pod.sh"]
  run, *words = learner["args"]
  trains, samples = accepted(["learner", *words]), accepted(sampler["args"])
  assert run == f"/shared/{jobset['metadata']['name']}/run"
  name, network = jobset["metadata"]["name"], jobset["spec"]["network"]
  assert samples.learner == f"{name}-learner-0-0.{network['subdomain']}:50051"
  assert trains.weights_dir == samples.weights_dir == f"/shared/{name}/weights"
  assert trains.token_file == samples.token_file == "/certs/token"


def test_pods_get_tpus_time_to_end_and_their_secrets(job, pods):
  learner, sampler = pods
  assert job["spec"]["parallelism"] == job["spec"]["completions"] == 4
  for pod, topology in ((learner, "4x4"), (sampler, "2x2")):
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
  asked = lambda index, **env: subprocess.run(
    ["bash", "-c", probe.replace("grpc_health_probe", "echo")],
    capture_output=True,
    text=True,
    env={"JOB_COMPLETION_INDEX": index, "PATH": "/usr/bin:/bin"} | env,
  )
  assert ok(asked("1")) == "" == ok(asked("0", MEGASCALE_SLICE_ID="1"))
  flags = re.findall(r"-([-a-z]+)(?:=(\S+))?(?: |$)", ok(asked("0")))
  assert dict(flags)["addr"] == "localhost:50051" and dict(flags)["tls"] == ""
  assert dict(flags)["tls-client-cert"] == "/certs/server.pem"


@pytest.mark.parametrize(
  ("generation", "topology", "accelerator", "machine", "hosts", "one_host"),
  [
    ("v5e", "4x8", "tpu-v5-lite-podslice", "ct5lp-hightpu-4t", 8, "2x4"),
    ("v5p", "2x2x4", "tpu-v5p-slice", "ct5p-hightpu-4t", 4, "2x2x1"),
    ("v6e", "2x4", "tpu-v6e-slice", "ct6e-standard-4t", 2, "1x1"),
    ("tpu7x", "2x2x2", "tpu7x", "tpu7x-standard-4t", 2, "1x1x1"),
  ],
)
def test_generations(tmp_path, generation, topology, accelerator, machine, hosts, one_host):
  def change(values):
    values["learner"].update(generation=generation, topology=topology, slices=2)
    devices = hosts * 4 * (2 if generation == "tpu7x" else 1)
    values["learner"]["flags"] += [f"--config.mesh.fsdp={devices}", "--config.mesh.data=2"]
    values["learner"]["flags"] += ["--config.sampler.tensor=1"]
    values["samplers"].update(generation=generation, topology=one_host)
    values["cluster"] = CLUSTER

  jobset, deployment = manifests(values_file(tmp_path, change))
  assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 2
  job = job_of(jobset)["spec"]
  assert job["parallelism"] == job["completions"] == hosts
  for pod, shape in ((pod_of(job_of(jobset)), topology), (pod_of(deployment), one_host)):
    wanted = pod["nodeSelector"]
    assert wanted["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert wanted["cloud.google.com/gke-tpu-topology"] == shape
  commands = render.pools(render.load(tmp_path / "values.yaml"))
  *policies, first, second, samplers = commands
  assert [pool[4] for pool in (first, second, samplers)] == NODE_POOLS
  assert {f"--machine-type={machine}", f"--num-nodes={hosts}"} <= set(
    first
  ) and "--spot" in samplers
  # A workload policy has the topology of TPU7x; a node pool may not have both.
  by_policy = generation == "tpu7x"
  assert (f"--tpu-topology={topology}" in first) != by_policy
  assert ("--placement-policy=offpolicy-rl" in first) == by_policy
  assert [
    "--region=us-east5" in p and f"--accelerator-topology={topology}" in p for p in policies
  ] == ([True] if by_policy else [])


def test_reserved_and_spot_learners(tmp_path):
  for capacity, label in (("spot", "gke-spot"), ("reservation/mine", "reservation-name")):
    jobset, _ = manifests(
      values_file(tmp_path, lambda v, c=capacity: v["learner"].update(capacity=c))
    )
    pod = pod_of(job_of(jobset))
    assert pod["nodeSelector"][f"cloud.google.com/{label}"] in ("true", "mine")
    assert ("tolerations" in pod) == (capacity == "spot")


def test_preemptions_do_not_count_as_failures(jobset_and_deployment, job):
  """By what Job says of the rule that matched: see JobSet's failure policy."""
  by_exit, by_disruption = job["spec"]["podFailurePolicy"]["rules"]
  assert by_exit["onExitCodes"]["values"] == [2]
  assert by_disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
  rules = jobset_and_deployment[0]["spec"]["failurePolicy"]["rules"]
  said = "Pod x/y has condition DisruptionTarget matching FailJob rule at index 1"
  matching = [r["action"] for r in rules if re.search(r["onJobFailureMessagePatterns"][0], said)]
  assert matching == ["RestartJobSetAndIgnoreMaxRestarts"]


def test_a_bucket_is_mounted_by_workload_identity(tmp_path):
  change = lambda values: values.update(shared="gs://mine", service_account="writer")
  jobset, deployment = manifests(values_file(tmp_path, change))
  for workload in (job_of(jobset), deployment):
    pod, annotations = pod_of(workload), workload["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"gke-gcsfuse/volumes": "true"} and pod["serviceAccountName"] == "writer"
    (volume,) = [v for v in pod["volumes"] if v["name"] == "shared"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "mine"
  args = pod_of(job_of(jobset))["containers"][0]["args"]
  assert args[0] == "/local/run", "files that grow are nothing for a bucket"


def test_secrets_become_the_environment(tmp_path):
  for workload in manifests(
    values_file(tmp_path, lambda values: values.update(secrets=["wandb", "hub"]))
  ):
    pod = pod_of(job_of(workload) if workload["kind"] == "JobSet" else workload)
    names = [s["secretRef"]["name"] for s in pod["containers"][0]["envFrom"]]
    assert names == ["wandb", "hub"]


def test_a_queue_of_kueue_holds_the_run(tmp_path):
  def change(values):
    values["queue"] = "mine"
    values["samplers"].update(generation="v5e", replicas=3)

  jobset, deployment = manifests(values_file(tmp_path, change))
  for workload in (jobset, deployment):
    assert workload["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "mine"
  queue = list(yaml.safe_load_all(render.queue(render.load(tmp_path / "values.yaml"))))
  kinds = [manifest["kind"] for manifest in queue]
  assert kinds == ["ResourceFlavor", "ResourceFlavor", "ClusterQueue", "LocalQueue"]
  for manifest in queue:
    jsonschema.validate(manifest, KUEUE[manifest["kind"]])
  (group,) = queue[2]["spec"]["resourceGroups"]
  quotas = {
    flavor["name"]: [resource["nominalQuota"] for resource in flavor["resources"]]
    for flavor in group["flavors"]
  }
  assert quotas == {"mine-v6e": [16, 96, "400Gi"], "mine-v5e": [12, 72, "300Gi"]}
  asked = pod_of(deployment)["containers"][0]["resources"]["requests"]
  assert set(asked) == set(group["coveredResources"]), "Kueue admits nothing else"


def test_programs_of_the_policy_have_pods_that_only_samplers_reach(tmp_path):
  file = values_file(tmp_path, lambda values: values["sandbox"].update(pool="p", image="python:1"))
  values = render.load(file)
  namespace, template, pool, *rights = yaml.safe_load_all(render.sandbox(values))
  for manifest in (namespace, *rights):
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
  for manifest in (template, pool):
    jsonschema.validate(manifest, AGENT_SANDBOX[manifest["kind"]])
  spec, policy = template["spec"]["podTemplate"]["spec"], template["spec"]["networkPolicy"]
  named = {"metadata": {"name": "x"}}
  for kind, version, inner in (
    ("Pod", "v1", spec),
    ("NetworkPolicy", "networking.k8s.io/v1", policy | {"podSelector": {}}),
  ):
    manifest = named | {"kind": kind, "apiVersion": version, "spec": inner}
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
  assert policy["egress"] == [] and not spec["automountServiceAccountToken"]
  jobset, deployment = manifests(file)
  learner, sampler = pod_of(job_of(jobset)), pod_of(deployment)
  where = {v["name"]: v.get("value") for v in sampler["containers"][0]["env"]}[outcomes.WHERE]
  assert where == f"pods:{pool['metadata']['namespace']}/{pool['metadata']['name']}"
  assert (learner["automountServiceAccountToken"], sampler["automountServiceAccountToken"]) == (
    False,
    True,
  )
  labels = deployment["spec"]["template"]["metadata"]["labels"]
  (source,) = policy["ingress"][0]["from"]
  assert source["podSelector"]["matchLabels"].items() <= labels.items()
  (subject,) = rights[1]["subjects"]
  assert subject["name"] == sampler["serviceAccountName"]


@pytest.mark.parametrize("key", ["pool", "image"])
def test_pods_for_programs_need_a_name_and_an_image(tmp_path, key):
  values = render.load(values_file(tmp_path, lambda v: v["sandbox"].update(pool="p", image="i")))
  values["sandbox"][key] = None
  with pytest.raises(render.ValuesError, match=f"sandbox.{key}: got None, expected that of the"):
    render.sandbox(values)


def test_a_misspelt_field_of_kueue_is_refused():
  queue = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "LocalQueue", "metadata": {"name": "q"}}
  with pytest.raises(jsonschema.ValidationError, match="clusterqueue"):
    jsonschema.validate(queue | {"spec": {"clusterqueue": "q"}}, KUEUE["LocalQueue"])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda v: v.update(image=""), "image: got '', expected a value"),
    (lambda v: v["learner"].pop("slices"), "learner.slices: missing, expected such as 1"),
    (lambda v: v["samplers"].update(replica=3), "samplers.replica: unknown, expected one of repli"),
    (lambda v: v["learner"].update(slices="2"), "learner.slices: got '2', expected int"),
    (lambda v: v["learner"].update(slices=2), "got a mesh of 16 devices (--config.mesh.data=1, "),
    (lambda v: v["learner"].update(slices=2), "expected 32, as many as 2 x 4x4 of v6e have"),
    (
      lambda v: v["learner"]["flags"].append("--config.mesh.x=1"),
      "flags: --config.mesh.x: unknown",
    ),
    (lambda v: v["samplers"].update(topology="1x1"), "expected at most the 1 of 1x1 of v6e"),
    (lambda v: v["learner"].update(topology="2x3"), "learner.topology: got '2x3', expected that"),
    (lambda v: v["learner"].update(generation="v5p"), "got '4x4', expected that of a slice of v5p"),
    (lambda v: v["samplers"].update(topology="4x4"), "got '4x4', expected that of one host of v6e"),
    (lambda v: v["learner"].update(generation="v9"), "learner.generation: got 'v9', expected v5e,"),
    (lambda v: v["samplers"].update(capacity="cheap"), "got 'cheap', expected on-demand, spot or"),
    (lambda v: v.update(name="My_Run"), "name: got 'My_Run', expected at most 32"),
  ],
)
def test_wrong_values_are_named(tmp_path, change, message):
  with pytest.raises(render.ValuesError, match=re.escape(message)):
    render.load(values_file(tmp_path, change))


@pytest.fixture
def gke(desk):
  """gke.sh with a stand-in for kubectl."""
  desk.stub("kubectl", KUBECTL)
  desk.stub("gcloud", GCLOUD)
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


def test_pools_queue_and_scale(desk, gke, tmp_path):
  def change(values):
    values.update(cluster=CLUSTER, queue="q")
    values["learner"].update(slices=2)
    values["learner"]["flags"].append("--config.mesh.data=2")

  values = str(values_file(tmp_path, change))
  for command in (["pools", values], ["queue", values], ["scale", values, "9"]):
    ok(gke(*command))
  assert [call[3] for call in desk.argvs("gcloud")] == NODE_POOLS
  applied, scaled = desk.calls("kubectl")
  assert "kind: ClusterQueue" in applied["stdin"]
  assert scaled["argv"][1:] == ["scale", "deployment", "offpolicy-rl-sampler", "--replicas=9"]


@pytest.mark.parametrize(
  ("command", "more", "tool"),
  some(
    [("pools", "", "gcloud"), ("start", "", "kubectl")],
    [
      ("queue", "", "kubectl"),
      ("secrets", "certs", "kubectl"),
      ("scale", "2", "kubectl"),
      ("delete", "", "kubectl"),
    ],
  ),
)
def test_a_dry_run_prints_and_runs_nothing(desk, gke, tmp_path, command, more, tool):
  change = lambda values: values.update(cluster=CLUSTER, queue="q")
  values, certs = str(values_file(tmp_path, change)), tmp_path / "certs"
  more = str(certs) if more == "certs" else more
  assert tool in ok(gke(command, values, *([more] if more else []), "--dry-run"))
  assert desk.argvs("kubectl") == [] == desk.argvs("gcloud") and not certs.exists()


@pytest.mark.parametrize(
  ("command", "message"),
  some(
    [
      ("begin", "got begin, expected pools, queue, sandbox, secrets"),
      ("pools", ": got None, expected the one that node pools are for"),
    ],
    [
      ("queue", "queue: got None, expected the name"),
      ("scale", "N: got nothing, expected a number"),
      ("secrets", "CERTS: missing, expected the directory"),
    ],
  ),
)
def test_what_is_missing_is_named(desk, gke, tmp_path, command, message):
  done = gke(command, str(values_file(tmp_path)))
  assert done.returncode == 2 and message in done.stderr
  assert desk.argvs("kubectl") == []


def test_missing_values_are_named(desk, gke):
  for words, message in (
    (["start"], "VALUES: missing, expected a file"),
    (["start", str(LAUNCH / "gke" / "values.yaml")], "image: got ''"),
    (["delete", "run.yaml", "--dryrun"], "delete: got --dryrun, expected nothing behind VALUES"),
  ):
    done = gke(*words)
    assert done.returncode == 2 and message in done.stderr, words
  assert desk.argvs("kubectl") == []
