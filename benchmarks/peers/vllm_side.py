"""The other side: vLLM on CPU, its engine called in this process, eagerly.

Runs in an environment of its own (`make .venv-vllm/.installed`). It refills slots as ours does; its
weights are random, too, so that lengths have the same distribution.
"""

import json
import os
import pathlib
import sys
import tempfile

os.environ |= {
  "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
  "VLLM_CPU_KVCACHE_SPACE": "2",
  "OMP_NUM_THREADS": "2",
  "VLLM_LOGGING_LEVEL": "ERROR",
}

import vllm
import work


def engine(shape: dict, directory: pathlib.Path) -> vllm.LLM:
  """Llama of this shape, float32, with room for as many rows as there are slots."""
  architecture = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": shape["vocabulary"],
    "num_hidden_layers": shape["layers"],
    "hidden_size": shape["width"],
    "num_attention_heads": shape["heads"],
    "num_key_value_heads": shape["kv_heads"],
    "head_dim": shape["width"] // shape["heads"],
    "intermediate_size": shape["mlp"],
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 1024,
    "rope_theta": 10_000.0,
    "torch_dtype": "float32",
  }
  (directory / "config.json").write_text(json.dumps(architecture))
  return vllm.LLM(
    str(directory),
    skip_tokenizer_init=True,
    load_format="dummy",
    dtype="float32",
    enforce_eager=True,
    max_model_len=work.PROMPT + work.MOST,
    max_num_seqs=work.SLOTS,
    logprobs_mode="processed_logprobs",
    disable_log_stats=True,
  )


def jobs(llm: vllm.LLM, vocabulary: int) -> dict:
  """Turn -> tokens made, each with its log-probability."""

  def run(prompts, seed: int, **how) -> int:
    wanted = vllm.SamplingParams(
      n=work.GROUP_SIZE, temperature=1.0, seed=seed, logprobs=0, detokenize=False, **how
    )
    asked = [{"prompt_token_ids": row.tolist()} for row in prompts]
    answers = llm.generate(asked, wanted, use_tqdm=False)
    return sum(len(one.token_ids) for answer in answers for one in answer.outputs)

  def generate(turn: int) -> int:
    ends = work.ends(vocabulary)
    return run(work.prompts(vocabulary, turn), turn, max_tokens=work.MOST, stop_token_ids=ends)

  def decode(turn: int) -> int:
    prompts = work.filling(work.prompts(vocabulary, turn))
    return run(prompts, turn, max_tokens=work.FULL, ignore_eos=True)

  return {"generate": generate, "decode": decode}


def main() -> None:
  """vllm_side.py SHAPE generate|decode"""
  shape = work.SHAPES[sys.argv[1]]
  with tempfile.TemporaryDirectory() as folder:
    work.serve(jobs(engine(shape, pathlib.Path(folder)), shape["vocabulary"]))


if __name__ == "__main__":
  main()
