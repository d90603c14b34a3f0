"""Reads what a segment is from its bytes. Pure: bytes in, frozen values out; no I/O, no clock, no asyncio."""

from hlsrelay.media.info import PTS_MODULUS, AudioInfo, Container, MediaError, MediaInfo, VideoInfo

__all__ = ["PTS_MODULUS", "AudioInfo", "Container", "MediaError", "MediaInfo", "VideoInfo"]
