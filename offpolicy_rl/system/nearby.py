"""Names what there is where a file is missing, for errors."""

import difflib
import pathlib

_SHOWN = 6


def files(path: pathlib.Path) -> str:
  """Says what the nearest directory of a missing path has: "; DIR has a, b"."""
  folder = next((place for place in path.parents if place.is_dir()), None)
  if folder is None:
    return ""
  try:
    there = {p.name: p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name[0] != "."}
  except OSError as error:
    return f"; {folder}: {error.strerror}"
  wanted = path.relative_to(folder).parts[0]
  similar = difflib.get_close_matches(wanted, there, n=3)
  names = [there[name] for name in dict.fromkeys([*similar, *sorted(there)])]
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  where = "this directory" if folder == pathlib.Path() else folder
  return f"; {where} has {', '.join(names[:_SHOWN]) or 'no files'}{more}"
