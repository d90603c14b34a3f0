"""The judge: watches playlists and media as a player sees them, and says which rule of live HLS is broken. Pure.

It shares no code with what it judges: `reading` is a strict reader of its own, beside the tolerant one in hls.parse.
"""

from hlsrelay.judge.findings import RULES, Finding, Severity
from hlsrelay.judge.judge import Judge, Retiring
from hlsrelay.judge.listed import MediaPlaylist, Multivariant, Resource, Span

__all__ = ["RULES", "Finding", "Judge", "MediaPlaylist", "Multivariant", "Resource", "Retiring", "Severity", "Span"]
