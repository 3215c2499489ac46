"""Runs in an environment of its own with transformers.

  python transformers_tokenizers.py QUESTIONS.json ANSWERS.json

Every question is {"folder": a checkpoint's small files, "chats": [[messages, arguments, opened]],
"texts": [...]}. Every answer says what AutoTokenizer makes of them: the special tokens by name,
each chat as text and as ids, each text's ids with what the tokenizer adds, and these ids as text
with and without special tokens; {"error": ...} where it refuses.
"""

import datetime
import json
import sys

import transformers


def attempt(call):
  """What `call` returns, or how it fails."""
  try:
    return call()
  except Exception as error:  # whatever a template or a tokenizer runs into
    return {"error": f"{type(error).__name__}: {error}"}


def chat(tokenizer, messages, arguments, opened, **how):
  """One conversation."""
  how |= {"add_generation_prompt": opened, "return_dict": False}
  return attempt(lambda: tokenizer.apply_chat_template(messages, **how, **arguments))


def text(tokenizer, said: str) -> dict:
  """One text."""
  ids = tokenizer(said)["input_ids"]
  return {
    "ids": ids,
    "plain": tokenizer.decode(ids, skip_special_tokens=True),
    "spelled": tokenizer.decode(ids, skip_special_tokens=False),
  }


def answer(question: dict) -> dict:
  """All of one tokenizer."""
  found = transformers.AutoTokenizer.from_pretrained(question["folder"])
  chats = question["chats"]
  return {
    "named": found.special_tokens_map,
    "eos_id": found.eos_token_id,
    "chats": [chat(found, *row, tokenize=False) for row in chats],
    "chat_ids": [chat(found, *row, tokenize=True) for row in chats],
    "texts": [text(found, said) for said in question["texts"]],
  }


def main(source: str, to: str) -> None:
  """Answers all questions."""
  with open(source, encoding="utf-8") as file:
    questions = json.load(file)
  answers = [attempt(lambda q=question: answer(q)) for question in questions]
  with open(to, "w", encoding="utf-8") as file:
    json.dump({"day": datetime.date.today().isoformat(), "answers": answers}, file)


if __name__ == "__main__":
  transformers.utils.logging.set_verbosity_error()
  main(*sys.argv[1:])
