"""The frame of a page: a single file with style, scripts and data."""

import base64
import hashlib
import html
import json
import pathlib
from collections.abc import Sequence

from offpolicy_rl.report.figures import Figure

_HERE = pathlib.Path(__file__).parent
_SCRIPTS = ("charts.js", "browser.js")


def page(title: str, parts: Sequence[str], data: dict) -> str:
  """Makes an HTML page.

  Args:
    title: not escaped.
    parts: HTML.
    data: for charts.js and browser.js, not escaped: {"charts": [Figure.data, ...] in order,
      "completions": completions.for_browser(...)}.
  """
  scripts = [(_HERE / name).read_text(encoding="utf-8") for name in _SCRIPTS]
  # Only these scripts run, and nothing is fetched, whatever a run's texts contain.
  hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
  policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes}"
  style = (_HERE / "style.css").read_text(encoding="utf-8")
  return "".join(
    [
      "<!doctype html><html lang=en><head><meta charset=utf-8>",
      f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
      f"<title>{html.escape(title)}</title>",
      '<meta name=viewport content="width=device-width, initial-scale=1">',
      f"<style>{style}</style></head><body>",
      *parts,
      f'<script type="application/json" id="data">{embedded(data)}</script>',
      *(f"<script>{script}</script>" for script in scripts),
      "</body></html>",
    ]
  )


def _digest(script: str) -> str:
  return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def embedded(data: object) -> str:
  """JSON for a script element, escaped so that no text in it ends the element."""
  text = json.dumps(data, separators=(",", ":"), allow_nan=False)
  for sign in "<>&":
    text = text.replace(sign, f"\\u{ord(sign):04x}")
  return text


def section(anchor: str, title: str, *parts: str) -> str:
  """A section of a page."""
  return f'<section id="{anchor}"><h2>{html.escape(title)}</h2>{"".join(parts)}</section>'


def navigation(anchors: Sequence[tuple[str, str]]) -> str:
  """Links to the sections, and the switch for smooth curves."""
  links = "".join(f'<a href="#{anchor}">{html.escape(name)}</a>' for anchor, name in anchors)
  switch = "<label><input type=checkbox id=smoothing checked> smooth curves</label>"
  return f"<nav aria-label=sections>{links}{switch}</nav>"


def grid(figures: Sequence[Figure | None]) -> str:
  """Figures side by side; "" if there are none."""
  drawn = [figure.html for figure in figures if figure]
  return f"<div class=grid>{''.join(drawn)}</div>" if drawn else ""


def table(
  head: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str = "", code: bool = False
) -> str:
  """A table of unescaped text: names in the first column, then numbers or `code`.

  `empty`: text to show if there are no rows.
  """
  if not rows:
    return f"<p class=soft>{html.escape(empty)}</p>" if empty else ""
  cell = lambda text: (
    f"<td><code>{html.escape(text)}</code></td>"
    if code
    else f"<td class=number>{html.escape(text)}</td>"
  )
  names = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in head)
  body = "".join(
    f"<tr><th scope=row>{html.escape(row[0])}</th>{''.join(map(cell, row[1:]))}</tr>"
    for row in rows
  )
  css = ' class="settings"' if code else ""
  return (
    f'<div class="scroll" tabindex="0"><table{css}><thead><tr>{names}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )
