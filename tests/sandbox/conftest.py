"""A cluster for the tests of pods."""

import pytest
from kubernetes.config import kube_config

from offpolicy_rl.sandbox import pods
from tests.sandbox.cluster import Cluster


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  """A cluster that this process's clients find."""
  cluster = Cluster(tmp_path)
  monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(cluster.kubeconfig))
  pods._client.cache_clear()
  pods.check.cache_clear()
  yield cluster
  cluster.close()
  pods._client.cache_clear()
  pods.check.cache_clear()
