"""What all tests share: Hypothesis never judges by the clock, since these machines are noisy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("hlsrelay", deadline=None)
settings.load_profile("hlsrelay")
