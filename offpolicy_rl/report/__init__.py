"""HTML pages of a run, and of several runs compared: single files that need no network.

Charts are drawn here; charts.js shows their values at a cursor, browser.js shows completions.
"""

from offpolicy_rl.report.comparison import compare
from offpolicy_rl.report.page import write

__all__ = ["compare", "write"]
