"""Puts a Python process's wall clock out by CLOCK_OFF_S seconds; what measures intervals goes on right (Python imports this by itself)."""

from __future__ import annotations

import os
import time

_true = time.time
_OFF_S = float(os.environ["CLOCK_OFF_S"])
time.time = lambda: _true() + _OFF_S
