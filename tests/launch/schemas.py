"""What the CRDs of JobSet, Kueue and agent-sandbox say of the fields that launch/gke uses."""


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
  onJobFailureMessagePatterns={"type": "array", "items": _TEXT},
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

# The same of Kueue (kubernetes-sigs/kueue 0.19.2, config/components/crd/bases, v1beta2).
_OBJECT = {"type": "string", "maxLength": 253, "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
_QUANTITY = {"type": ["integer", "string"], "pattern": "^[0-9]+([KMGTPE]i|[kMGTPE])?$"}
_QUOTA = _fields(("name", "nominalQuota"), name=_TEXT, nominalQuota=_QUANTITY)
_TOLERATION = _fields(key=_TEXT, operator={"enum": ["Exists", "Equal"]}, value=_TEXT, effect=_TEXT)
_SOME = {"type": "array", "minItems": 1, "maxItems": 64}
_FLAVOR_QUOTAS = _fields(("name", "resources"), name=_OBJECT, resources=_SOME | {"items": _QUOTA})
_GROUP = _fields(
  ("coveredResources", "flavors"),
  coveredResources=_SOME | {"items": _TEXT},
  flavors=_SOME | {"items": _FLAVOR_QUOTAS},
)
_SPECS = {
  "ResourceFlavor": _fields(
    nodeLabels={"type": "object", "maxProperties": 8, "additionalProperties": _TEXT},
    tolerations={"type": "array", "maxItems": 8, "items": _TOLERATION},
  ),
  "ClusterQueue": _fields(
    namespaceSelector=_fields(matchLabels={"type": "object", "additionalProperties": _TEXT}),
    resourceGroups={"type": "array", "maxItems": 16, "items": _GROUP},
  ),
  "LocalQueue": _fields(clusterQueue=_OBJECT),
}
KUEUE = {
  kind: _fields(
    ("apiVersion", "kind", "metadata"),
    apiVersion={"const": "kueue.x-k8s.io/v1beta2"},
    kind={"const": kind},
    metadata=_fields(("name",), name=_OBJECT, namespace=_TEXT),
    spec=spec,
  )
  for kind, spec in _SPECS.items()
}

# The same of agent-sandbox (kubernetes-sigs/agent-sandbox 0.5.6, k8s/crds, v1beta1). What is
# Kubernetes' own inside, pod and network policy, is checked against that.
_SANDBOX_SPECS = {
  "SandboxTemplate": _fields(
    ("podTemplate",),
    networkPolicy=_fields(ingress={"type": "array"}, egress={"type": "array"}),
    podTemplate=_fields(("spec",), spec={"type": "object"}),
  ),
  "SandboxWarmPool": _fields(
    ("sandboxTemplateRef",), replicas=_COUNT, sandboxTemplateRef=_fields(("name",), name=_TEXT)
  ),
}
AGENT_SANDBOX = {
  kind: _fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "extensions.agents.x-k8s.io/v1beta1"},
    kind={"const": kind},
    metadata=_fields(("name", "namespace"), name=_OBJECT, namespace=_OBJECT),
    spec=spec,
  )
  for kind, spec in _SANDBOX_SPECS.items()
}
