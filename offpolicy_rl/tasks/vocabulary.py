"""A small lossless vocabulary: characters, plus the phrases that a task's prompts repeat."""

import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence

from offpolicy_rl.tasks import stop_texts
from offpolicy_rl.tasks.special_tokens import TokenizerError

PAD, EOS, UNKNOWN = 0, 1, 2
_SPECIAL = ("<pad>", "<eos>", "<unk>")
_CHARACTERS = tuple(chr(c) for c in range(32, 127)) + ("\n",)
_MULTIPLE = 16  # sizes are rounded up with unused ids, so that a mesh can split the embedding


class Vocabulary:
  """Text <-> token ids."""

  eos = turn_end = EOS
  ends = (EOS,)  # tokens that end a completion

  def __init__(self, phrases: tuple[str, ...] = (), *, stop: Sequence[str] = ()):
    """`phrases`: texts of one token each, longest match first; `stop`: end a completion."""
    self._phrases, self.stop_texts = phrases, tuple(stop)
    used = _SPECIAL + _CHARACTERS + phrases
    self.pieces = used + ("",) * (-len(used) % _MULTIPLE)
    self._ids = {piece: i for i, piece in enumerate(used) if i >= len(_SPECIAL)}
    longest_first = sorted(phrases, key=len, reverse=True)
    self._split = re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)

  def stopping(self, texts: Sequence[str]) -> "Vocabulary":
    """The same vocabulary with other stop texts."""
    return Vocabulary(self._phrases, stop=texts)

  @property
  def size(self) -> int:
    """Number of token ids."""
    return len(self.pieces)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of all pieces; a sampler with another one is refused."""
    return hashlib.sha256("\0".join(self.pieces).encode()).hexdigest()[:16]

  def encode(self, text: str) -> list[int]:
    """Token ids of a text; a character outside printable ASCII becomes UNKNOWN."""
    return [self._ids.get(piece, UNKNOWN) for piece in self._split.findall(text)]

  prompt = encode  # questions are prompts as they are

  def opening(self, question: str, _messages: Sequence[dict] = ()) -> list[dict[str, str]]:
    """The message whose `conversation` is the prompt of a question."""
    return [{"role": "user", "content": question}]

  def conversation(self, messages: Sequence[dict], tools: Sequence[dict] = ()) -> list[int]:
    """Token ids of the texts of messages {"role", "content"}; TokenizerError if there are tools."""
    if tools:
      raise TokenizerError("tools: got some, expected none without a chat template")
    return self.encode("".join(message["content"] for message in messages))

  def reply(self, texts: Sequence[str], _role: str, _last: int | None) -> list[int]:
    """Token ids of what an environment says after a turn of the policy: the texts as they are."""
    return self.encode("".join(texts))

  def decode_all(self, ids: Iterable[int]) -> str:
    """Text of all tokens, also past the end of a completion, without special tokens."""
    return "".join(self.pieces[i] for i in ids if i >= len(_SPECIAL))

  def decode_special(self, ids: Iterable[int]) -> str:
    """Text of all tokens, special ones by name."""
    return "".join(self.pieces[i] for i in ids)

  def token_texts(self, ids: Iterable[int]) -> list[str]:
    """Text of each token, special ones by name."""
    return [self.pieces[i] for i in ids]

  def decode(self, ids: Iterable[int]) -> str:
    """Text of a completion, up to the end-of-sequence token or the stop text."""
    before_end = list(itertools.takewhile(lambda i: i != EOS, ids))
    return stop_texts.before(before_end, self.stop_texts, self.decode_all, self.decode_special)
