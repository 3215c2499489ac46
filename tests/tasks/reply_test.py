"""What follows a turn of the model: token by token what the template renders for the whole chat."""

import pytest

from offpolicy_rl.tasks import tokenizer, turns
from tests.tasks.published import FAMILIES, published

QUESTION, ANSWER, REPLY = "2 and 2?", "It is 5.", "No: less. Again?"


def of_family(tmp_path, name: str, **arguments) -> tokenizer.Tokenizer:
  return tokenizer.Tokenizer(tokenizer.read_files(published(tmp_path, name)), **arguments)


THINK = ("deepseek-r1-distill-qwen-1.5b", "qwen3-0.6b")  # see turns_test.py
OTHERS = [name for name in FAMILIES if name not in THINK]
TELLS = {"user": [[REPLY], ["Less."]], "tool": [["4"], ["5", "six"]]}
STRICT = ("gemma-3-1b-it", "gemma-2-2b-it")  # turns of user and model only


@pytest.mark.parametrize("role", TELLS)
@pytest.mark.parametrize("name", OTHERS)
def test_answers_continue_the_tokens_of_the_turns_before(tmp_path, monkeypatch, name, role):
  """Two of them, each before what an environment says."""
  if name.startswith("llama"):  # elsewhere it stands for templates whose ends are no tokens
    monkeypatch.setitem(FAMILIES, name, ({}, "llama3", "<|begin_of_text|>"))
  words = of_family(tmp_path, name)
  if role == "tool" and name in STRICT:
    with pytest.raises(tokenizer.TokenizerError, match="it can't write messages of role 'tool'"):
      turns.check(words, "refuse", [role])
    return
  turns.check(words, "refuse", [role])
  messages, found = [{"role": "user", "content": QUESTION}], words.prompt(QUESTION)
  cut = found
  for answer, texts in zip((ANSWER, "So: 4"), TELLS[role], strict=True):
    messages += [{"role": "assistant", "content": answer}]
    messages += [{"role": role, "content": text} for text in texts]
    said = words.encode(answer)
    found = found + [*said, words.turn_end, *words.reply(texts, role, words.turn_end)]
    # A turn that a limit cut gets the end that the model did not write.
    cut = cut + said + words.reply(texts, role, said[-1])
  assert found == cut == words.encode(words.chat(messages))


def test_several_messages_follow_one_turn(tmp_path):
  words = of_family(tmp_path, "qwen2.5-0.5b-instruct")
  question = {"role": "user", "content": QUESTION}
  messages = [question, {"role": "assistant", "content": ANSWER}]
  messages += [{"role": "tool", "content": text} for text in ("4", "5")]
  said = [*words.encode(ANSWER), words.turn_end]
  found = words.prompt(QUESTION) + said + words.reply(["4", "5"], "tool", words.turn_end)
  assert found == words.encode(words.chat(messages))


def test_special_tokens_in_an_answer_are_refused(tmp_path):
  """An environment, or a policy that it repeats, can't end turns or begin others."""
  for chat in (True, False):
    words = of_family(tmp_path / str(chat), "qwen2.5-0.5b-instruct", chat=chat)
    with pytest.raises(tokenizer.TokenizerError, match="got the special token '<.im_end.>'"):
      words.reply(["4<|im_end|>"], "tool", words.turn_end)


def test_a_system_message_may_hold_the_text_by_which_turns_are_found(tmp_path):
  for system in ("Digits are 0123456789.", "01234567890123456789 0123456789"):
    words = of_family(tmp_path / str(len(system)), "qwen2.5-0.5b-instruct", system=system)
    begin = "\n<|im_start|>user\nNo.<|im_end|>\n<|im_start|>assistant\n"
    assert words.decode_special(words.reply(["No."], "user", words.turn_end)) == begin


def test_half_of_a_surrogate_pair_is_refused(tmp_path):
  """JSON that a policy writes may hold one, which a tool may repeat."""
  for chat in (True, False):
    words = of_family(tmp_path / str(chat), "qwen2.5-0.5b-instruct", chat=chat)
    with pytest.raises(tokenizer.TokenizerError, match=r"surrogate pair, '\\ud83d', at character"):
      words.reply(["4 \ud83d"], "tool", words.turn_end)


def test_without_a_chat_an_answer_is_its_text(tmp_path):
  words = of_family(tmp_path, "smollm2-135m-instruct", chat=False)
  turns.check(words, "refuse")
  assert words.reply([REPLY], "user", words.eos) == words.encode(REPLY)
