"""Counting collectives, on text made by hand and on programs compiled for eight virtual devices."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from offpolicy_rl import config as config_lib
from offpolicy_rl.model import policy, sharding
from offpolicy_rl.planning import architectures, collectives, plan, programs, topology
from offpolicy_rl.roles import build

HLO = """HloModule jit_f

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body.1 (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %gather = bf16[16,8]{1,0} all-gather(%x), dimensions={0}
  %started = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%x), dimensions={0}
  %done = bf16[16,8]{1,0} all-gather-done(%started)
  ROOT %t = (s32[], bf16[4,8]) tuple(%i, %y)
}

%condition.1 (p: (s32[], bf16[4,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.2 (x: bf16[4,8]) -> f32[3] {
  %loop = (s32[], bf16[4,8]) while(%init), condition=%condition.1, body=%body.1, TRIPS
  ROOT %reduced = f32[3]{0} all-reduce(%z), to_apply=%add
}
"""


def test_what_a_loop_says_counts_as_often_as_it_runs():
  text = HLO.replace("TRIPS", 'backend_config={"known_trip_count":{"n":"28"}}')
  assert collectives.parse(text) == {
    "all-gather": (2 * 28, 2 * 28 * 16 * 8 * 2),
    "all-reduce": (1, 12),
  }


# As libtpu writes a loop: nobody notes how often it runs.
UNNOTED = """HloModule jit_g

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], bf16[4,8]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %step = s32[]{:T(128)} constant(STEP)
  %gather = bf16[16,8]{1,0} all-gather(%x), dimensions={0}
  %after = s32[]{:T(128)} add(%i, %step)
  ROOT %t = (s32[], bf16[4,8]) tuple(%after, %y)
}

%condition (p: (s32[], bf16[4,8])) -> pred[] {
  %most = s32[]{:T(128)} constant(36)
  %p = (s32[], bf16[4,8]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, LIMIT), direction=LT
}

ENTRY %main (x: bf16[4,8]) -> (s32[], bf16[4,8]) {
  ROOT %loop = (s32[], bf16[4,8]) while(%init), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(
  ("step", "limit", "times"), [("1", "%most", 36), ("2", "%most", 18), ("1", "%i", 1)]
)
def test_loops_are_counted_by_their_conditions(step, limit, times):
  text = UNNOTED.replace("STEP", step).replace("LIMIT", limit)
  assert collectives.parse(text) == {"all-gather": (times, times * 16 * 8 * 2)}


ASYNCHRONOUS = """HloModule jit_h

%started (x: bf16[4,8]) -> bf16[16,8] {
  ROOT %gather = bf16[16,8]{1,0} all-gather(%x), dimensions={0}
}

%meanwhile (x: bf16[4,8]) -> bf16[16,8] {
  ROOT %gather = bf16[16,8]{1,0} all-gather(%x), dimensions={0}
}

%async_collective_fusion.1 (x: bf16[4,8]) -> bf16[16,8] {
  ROOT %gather = bf16[16,8]{1,0} all-gather(%x), dimensions={0}
}

ENTRY %main (x: bf16[4,8]) -> bf16[16,8] {
  %async-collective-start = (bf16[16,8], u32[]) fusion(%x), kind=kCustom, calls=%started
  %fusion.1 = (bf16[16,8], u32[]) fusion(%a, %b), kind=kOutput, calls=%async_collective_fusion.1
  %async-collective-done = bf16[16,8] fusion(%c), kind=kCustom, calls=%meanwhile
  %sent = (f32[64,96]{1,0:T(8)}, f32[64,96]{1,0}, u32[]{:S(2)}, u32[]) collective-permute-start(%y)
  ROOT %arrived = f32[64,96]{1,0} collective-permute-done(%sent)
}
"""


def test_an_asynchronous_collective_counts_once_and_without_its_contexts():
  assert collectives.parse(ASYNCHRONOUS) == {
    "all-gather": (1, 16 * 8 * 2),
    "collective-permute": (1, 64 * 96 * 4),
  }


def test_collectives_of_a_compiled_program_are_found():
  mesh = sharding.make_mesh(fsdp=8)
  split = NamedSharding(mesh, P("fsdp"))

  def layers(w, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  w = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
  x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=split)
  text = jax.jit(layers, out_shardings=split).lower(w, x).compile().as_text()
  found = collectives.parse(text)
  assert found["all-gather"] == (5, 5 * 64 * 64 * 4)  # each layer's matrix, whole


@pytest.mark.parametrize("name", ["v5e", "v5e:4", "v9:2x2", "v5e:4x4x4x4", "v5e:axb", ""])
def test_what_is_no_topology_is_refused(name):
  with pytest.raises(config_lib.ConfigError, match="--topology: got .*expected KIND:SHAPE"):
    topology.kind(name)


def test_memory_is_that_of_one_device():
  assert topology.memory_bytes("v5e:4x4") == 16 * 2**30
  assert topology.memory_bytes("v5p:2x2x1") == 95 * 2**30


def test_what_a_program_does_not_use_takes_its_room_all_the_same():
  mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])
  split = NamedSharding(mesh, P("x"))
  used, other = (jax.ShapeDtypeStruct((n,), jnp.float32, sharding=split) for n in (4000, 8000))
  make = lambda room, **more: programs._compiled(
    "", jax.jit(jnp.cos), (used,), mesh, room, 0, **more
  )
  alone, beside = make(10_000), make(10_000, resting={"weights": other})
  assert (alone.argument_bytes, beside.argument_bytes) == (4000, 12_000)
  assert beside.peak_bytes == alone.peak_bytes + 8000
  assert (alone.fits, beside.fits) == (True, False)


def test_a_learner_has_room_for_its_teacher(tiny_config, monkeypatch):
  """The step keeps the teacher's weights, the teacher's pass the state of Adam."""
  compiled = {}
  note = lambda name, _, given, *__, flops, resting: compiled.update(
    {name: (given, resting, flops)}
  )
  monkeypatch.setattr(programs, "_compiled", note)
  tiny_config.objective.name = "distill"
  model = build.make_policy(tiny_config, None).model
  larger = dataclasses.replace(model, num_layers=5, compute_dtype="bfloat16")
  programs.learner(tiny_config, model, sharding.make_mesh(fsdp=2), 1, larger)
  weights = {name: x.size for name, x in policy.flatten(policy.shapes(larger)).items()}
  (_, batch, _), rests_beside_step, flops = compiled["train step"]
  (params, unjudged), (state, _), forward = compiled["teacher"]
  assert params is rests_beside_step
  assert {name: x.size for name, x in policy.flatten(params).items()} == weights
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
  assert jax.tree.leaves(state.opt_state) and forward > flops / 3
  assert batch.teacher_logprobs.shape == batch.loss_mask.shape
  assert unjudged.teacher_logprobs is None


def test_a_result_is_kept_whole_and_shown_where_it_cant_be_kept(tmp_path, monkeypatch, capsys):
  made, compiled = programs.Program("step", 8, 1.0, 1, 1, 1, True, 1, {}, []), []
  monkeypatch.setattr(topology, "devices", lambda name: jax.devices())
  monkeypatch.setattr(programs, "learner", lambda *_: compiled.append(1) or [made])
  monkeypatch.setattr(programs, "decode", lambda *_: made)
  config = config_lib.load("configs/gsm8k_qwen3_8b.py")
  config.mesh.fsdp = 8
  of = lambda cache: plan.run(
    config, "v5e:2x4", architecture=architectures.KNOWN["qwen3-8b"], cache=cache
  )
  found = of(tmp_path / "kept")
  assert of(tmp_path / "kept")["parameters"] == found["parameters"] and len(compiled) == 1
  [file] = (tmp_path / "kept").iterdir()
  whole = file.read_text(encoding="utf-8")
  file.write_text(whole[:99], encoding="utf-8")  # killed while it was written
  assert of(tmp_path / "kept") == found and len(compiled) == 2
  assert file.read_text(encoding="utf-8") == whole
  assert capsys.readouterr().err.count("\n") == 2
  (tmp_path / "file").touch()
  assert of(tmp_path / "file") == found
  assert "--cache: the result is not kept: " in capsys.readouterr().err


def test_minutes_of_compiling_are_announced(tmp_path, monkeypatch, capsys):
  def compiled(*_):
    raise RuntimeError("far enough")

  monkeypatch.setattr(topology, "devices", lambda name: jax.devices())
  monkeypatch.setattr(programs, "learner", compiled)
  config = config_lib.load("configs/gsm8k_qwen3_8b.py")
  config.mesh.fsdp = 8
  architecture = architectures.KNOWN["qwen3-8b"]
  with pytest.raises(RuntimeError, match="far enough"):
    plan.run(config, "v5e:2x4", architecture=architecture, cache=tmp_path)
  assert capsys.readouterr().err == (
    f"compiling the learner's step and the sampler's decoding for v5e:2x4, which takes a minute or "
    f"more; the result is kept in {tmp_path}\n"
  )
