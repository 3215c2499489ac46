"""Pages that people look at: of one run, and of several beside one another.

Each is a single HTML file without network. Charts are drawn here (`charts.py`), `charts.js` reads
their values out, `browser.js` shows completions.
"""

from offpolicy_rl.report.comparison import compare
from offpolicy_rl.report.page import write

__all__ = ["compare", "write"]
