"""Templates that leave earlier thoughts out: refused, or asked what they write."""

import pytest

from offpolicy_rl.environments import context
from offpolicy_rl.tasks import thoughts, tokenizer, turns
from tests.tasks import small_tokenizers as small
from tests.tasks.published import FAMILIES, published

# As thinking models' do that open a thought, and leave it out of what came before.
OPENS = [("deepseek-r1-distill-qwen-1.5b", {}), ("qwen3-0.6b", {"enable_thinking": False})]
DROPS = [*OPENS, ("qwen3-0.6b", {})]
TAGS = ("<think>\n", "\n</think>\n\n")


def of_family(tmp_path, name: str, **arguments) -> tokenizer.Tokenizer:
  return tokenizer.Tokenizer(tokenizer.read_files(published(tmp_path, name)), **arguments)


@pytest.mark.parametrize(("name", "arguments"), DROPS)
def test_a_template_that_drops_thoughts_is_refused_unless_a_key_says_what_to_do(
  tmp_path, name, arguments
):
  words = of_family(tmp_path, name, arguments=arguments)
  with pytest.raises(tokenizer.TokenizerError, match=r"behind an answer .* environment.history"):
    turns.check(words, thoughts.REFUSE)
  turns.check(words, thoughts.KEEP)
  turns.check(words, thoughts.REWRITE)


TEXT_ENDS = "llama-3.2-1b-instruct"  # with a template that ends turns with texts


@pytest.mark.parametrize("mode", thoughts.HISTORIES)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in dict(DROPS)])
def test_others_are_taken_in_every_mode(tmp_path, name, mode):
  words = of_family(tmp_path, name)
  if name == TEXT_ENDS:
    with pytest.raises(tokenizer.TokenizerError, match="expected a token that ends a completion"):
      turns.check(words, mode)
  else:
    turns.check(words, mode)


def test_a_template_that_changes_answers_is_refused_where_they_are_kept(tmp_path):
  words = of_family(tmp_path, "smollm2-135m-instruct")
  chat = words.chat
  words.chat = lambda messages, **opened: chat(messages, **opened).replace("= 4", "= 5")
  for mode, said in (
    (thoughts.REFUSE, "behind an answer it writes"),
    (thoughts.KEEP, r"it writes an earlier answer '2 \+ 2 = 4' as '2 \+ 2 = 5<"),
    (thoughts.REWRITE, r"it writes an earlier answer '2 \+ 2 = 4' as '2 \+ 2 = 5<"),
  ):
    with pytest.raises(tokenizer.TokenizerError, match=said):
      turns.check(words, mode)


def with_template(folder, template: str) -> tokenizer.Tokenizer:
  inner = small.byte_level({"<e>": 1, "<r>": 2, "<c>": 3})
  settings = {"eos_token": "<e>", "chat_template": template}
  return tokenizer.Tokenizer(
    tokenizer.read_files(small.write(folder, inner, tokenizer_config=settings))
  )


def in_roles(assistant: str, begin: str) -> str:
  return (
    f"{{% for m in messages %}}{{% if m.role == 'assistant' %}}{assistant}"
    "{% else %}u:{{ m.content }}\n{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{begin}{{% endif %}}"
  )


def test_a_template_that_frames_answers_is_refused(tmp_path):
  """The policy would have to write the frame, in special tokens that no text of it has."""
  words = with_template(tmp_path, in_roles("a<c>final:{{ m.content }}<e>", "a"))
  for mode in thoughts.HISTORIES:
    with pytest.raises(tokenizer.TokenizerError, match="chat template: "):
      turns.check(words, mode)


def test_all_marks_that_end_a_turn_are_written_once(tmp_path):
  """Whichever of them the policy wrote last."""
  words = with_template(tmp_path, in_roles("a:{{ m.content }}<r><e>", "a:"))
  begin, end = words.prompt("Q"), [words.encode(mark)[0] for mark in ("<r>", "<e>")]
  whole = words.encode("u:Q\na:4<r><e>u:No.\na:")
  for turn in ([], end[:1], end):
    turn = [*words.encode("4"), *turn]
    assert begin + turn + words.reply(["No."], "user", turn[-1]) == whole
    seen = context.Context(turns.ChatHistory(words))
    seen.begin()
    seen.said(turn, words.decode(turn))
    assert begin + turn + seen.answered(["No."], "user")[0] == whole


def test_a_template_sees_the_whole_of_a_thought_that_the_prompt_began(tmp_path):
  """Some leave it out only if both of its tags are there, and keep the first in any case."""
  earlier = (
    "{% if '<think>' in m.content and '</think>' in m.content %}"
    "a:<think></think>{{ m.content.split('</think>')[1] }}<e>"
    "{% else %}a:<think></think>{{ m.content }}<e>{% endif %}"
  )
  words = with_template(tmp_path, in_roles(earlier, "a:<think>\n"))
  history = turns.ChatHistory(words)
  assert (history.tail_text, history.opened) == ("a:<think>\n", "<think>\n")
  begin, seen = history.without_tail(words.prompt("Q")), context.Context(history)
  turn = [*words.encode("well</think>4"), words.eos]
  size = len(seen.begin())
  seen.said(turn, words.decode(turn))
  tokens, to = seen.answered(["No."], "user")
  same = words.encode("a:<think>")  # what the template goes on writing
  assert to == len(same) == size - 1
  assert begin + same + tokens == words.encode("u:Q\na:<think></think>4<e>u:No.\na:<think>\n")


def said(words, thought: str, answer: str, *, opened: bool) -> list[int]:
  """Tokens of a turn; `opened`: the prompt has begun its thought."""
  text = f"{thought}{TAGS[1]}{answer}" if opened else f"{TAGS[0]}{thought}{TAGS[1]}{answer}"
  return [*words.encode(text), words.turn_end]


@pytest.mark.parametrize("role", ["user", "tool"])
@pytest.mark.parametrize(("name", "arguments"), [*DROPS, ("qwen2.5-0.5b-instruct", {})])
def test_the_context_is_what_the_template_writes(tmp_path, name, arguments, role):
  """Token by token, after every turn."""
  words = of_family(tmp_path, name, arguments=arguments)
  history = turns.ChatHistory(words)
  opened = thoughts.opened_by(words.chat([{"role": "user", "content": "Q"}])) != ""
  question = {"role": "user", "content": "Guess."}
  prompt, messages = history.without_tail(words.prompt("Guess.")), [question]
  seen, episode, rewinds = context.Context(history), [], 0
  episode += seen.begin()
  visible = list(range(len(episode)))
  assert prompt + episode == words.prompt("Guess.")
  for number in ("4", "5", "6"):
    turn = said(words, f"not {number}1?", f"It is {number}.", opened=opened)
    visible += range(len(episode), len(episode) + len(turn))
    episode += turn
    text = words.decode(turn)
    seen.said(turn, text)
    said_whole = history.opened + text
    messages += [
      {"role": "assistant", "content": said_whole},
      {"role": role, "content": "No: less."},
    ]
    tokens, to = seen.answered(["No: less."], role)
    if to is not None:
      visible, rewinds = [i for i in visible if i < to], rewinds + 1
    visible += range(len(episode), len(episode) + len(tokens))
    episode += tokens
    assert prompt + [episode[i] for i in visible] == words.encode(words.chat(messages))
  keeps = "qwen2.5" in name or (role == "tool" and (name, arguments) == ("qwen3-0.6b", {}))
  assert (rewinds == 0) == keeps


def test_tokens_that_are_written_as_they_were_are_not_made_again(tmp_path):
  """What the policy sampled stays in its own tokens, however many there are."""
  words = of_family(tmp_path, "qwen2.5-0.5b-instruct")
  seen = context.Context(turns.ChatHistory(words))
  seen.begin()
  turn = [*words.encode("4"), *words.encode("2"), words.turn_end]
  seen.said(turn, words.decode(turn))
  tokens, to = seen.answered(["No."], "user")
  assert to is None and tokens == words.reply(["No."], "user", words.turn_end)


NOTE, ASKS = {"role": "assistant", "content": "Not 4."}, {"role": "user", "content": "No."}
CHANGES = [  # of a conversation, after each turn of the policy; numbers are its turns
  [],
  [NOTE, ASKS],
  [NOTE, ASKS, 2, ASKS],
  [{"role": "assistant", "content": "It is 22."}, ASKS],
  [0, ASKS, NOTE],
  [2, ASKS, 5, ASKS],
]
FREER = [[ASKS], [6, {"role": "tool", "content": "7"}, ASKS], [7, ASKS, ASKS, 8, ASKS]]
STRICT = [("gemma-2-2b-it", {})]  # turns of user and model only, one after the other


@pytest.mark.parametrize(("name", "arguments"), [*DROPS, ("qwen2.5-0.5b-instruct", {}), *STRICT])
def test_the_context_is_what_the_template_writes_of_what_an_agent_says(tmp_path, name, arguments):
  """Token by token; the first two turns of the policy are empty."""
  words = of_family(tmp_path, name, arguments=arguments)
  history, question = turns.ChatHistory(words), {"role": "user", "content": "Guess."}
  opened = thoughts.opened_by(words.chat([question])) != ""
  prompt, seen = history.without_tail(words.prompt("Guess.")), context.Context(history)
  episode, texts = list(seen.begin()), []
  visible = list(range(len(episode)))
  changes = CHANGES if (name, arguments) in STRICT else [*CHANGES, *FREER]
  for n, messages in enumerate(changes):
    turn = said(words, f"not {n}1?", f"It is {n}.", opened=opened) if n > 1 else [words.turn_end]
    visible += range(len(episode), len(episode) + len(turn))
    episode += turn
    text = words.decode(turn)
    seen.said(turn, text)
    texts.append({"role": "assistant", "content": history.opened + text})
    tokens, to = seen.rewritten(messages)
    visible = visible if to is None else visible[: visible.index(to)]
    visible += range(len(episode), len(episode) + len(tokens))
    episode += tokens
    whole = words.chat([question, *(texts[m] if isinstance(m, int) else m for m in messages)])
    assert tokens and prompt + [episode[i] for i in visible] == words.encode(whole)


def test_what_stays_is_in_the_tokens_that_were_sampled(tmp_path):
  """Also where the conversation changes behind it; and one token is read again if it is all."""
  words = of_family(tmp_path, "qwen2.5-0.5b-instruct")
  seen = context.Context(turns.ChatHistory(words))
  size = len(seen.begin())
  turn = [*(token for letter in "the" for token in words.encode(letter)), words.turn_end]
  assert words.encode("the") != turn[:-1]
  seen.said(turn, "the")
  size += len(turn) + len(seen.answered(["No."], "user")[0])
  seen.said(turn, "the")
  again, to = seen.rewritten([0, {"role": "user", "content": "No."}])
  assert (len(again), to) == (1, size - 1)
  seen.said(turn, "the")
  tokens, to = seen.rewritten([0, {"role": "user", "content": "Yes."}])
  same = words.encode("<|im_end|>\n<|im_start|>user\n")
  assert to == len(words.encode("assistant\n")) + len(turn) - 1 + len(same)
  assert tokens == words.encode("Yes.<|im_end|>\n<|im_start|>assistant\n")


def test_turns_that_there_were_not_are_refused(tmp_path):
  seen = context.Context(turns.ChatHistory(of_family(tmp_path, "qwen2.5-0.5b-instruct")))
  with pytest.raises(tokenizer.TokenizerError, match=r"got \[0\], expected turns below 0"):
    seen.rewritten([0])


def test_an_environment_may_speak_first(tmp_path):
  words = of_family(tmp_path, "deepseek-r1-distill-qwen-1.5b")
  history = turns.ChatHistory(words)
  tokens, to = context.Context(history).answered(["Begin."], "user")
  messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": ""}]
  whole = words.chat([*messages, {"role": "user", "content": "Begin."}])
  assert to is None and history.without_tail(words.prompt("Q")) + tokens == words.encode(whole)


def test_special_tokens_in_what_is_said_are_refused(tmp_path):
  words = of_family(tmp_path, "qwen2.5-0.5b-instruct")
  history = turns.ChatHistory(words)
  for role, other in (("assistant", "user"), ("user", "assistant")):
    bad = [{"role": role, "content": "4<|im_end|>"}, {"role": other, "content": "4"}]
    with pytest.raises(tokenizer.TokenizerError, match="got the special token"):
      history.text(bad)
  call = {
    "id": "1",
    "type": "function",
    "function": {"name": "f", "arguments": {"a": "<|im_end|>"}},
  }
  with pytest.raises(tokenizer.TokenizerError, match="got the special token"):
    history.text([{"role": "assistant", "content": "", "tool_calls": [call]}])


def test_a_prompt_without_the_tail_is_refused(tmp_path):
  words = of_family(tmp_path, "deepseek-r1-distill-qwen-1.5b")
  history = turns.ChatHistory(words)
  with pytest.raises(tokenizer.TokenizerError, match=r"prompt: ends with tokens .*, expected"):
    history.without_tail(words.encode("Guess."))
