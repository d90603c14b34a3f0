"""Attribute lists (RFC 8216 4.2) as they should be spelt: players forgive sources what ours, and the rules, do not. Pure."""

from __future__ import annotations

import re

from hlsrelay.hls.variables import attributes

_LISTS = (
    "#EXT-X-KEY:", "#EXT-X-MAP:", "#EXT-X-DATERANGE:", "#EXT-X-STREAM-INF:", "#EXT-X-MEDIA:", "#EXT-X-I-FRAME-STREAM-INF:",
    "#EXT-X-SESSION-DATA:", "#EXT-X-SESSION-KEY:", "#EXT-X-START:",
)  # fmt: skip
_QUOTED = {
    "URI", "KEYFORMAT", "KEYFORMATVERSIONS", "BYTERANGE", "CODECS", "SUPPLEMENTAL-CODECS", "AUDIO", "VIDEO", "SUBTITLES", "GROUP-ID",
    "NAME", "LANGUAGE", "ASSOC-LANGUAGE", "ID", "CLASS", "START-DATE", "END-DATE", "INSTREAM-ID", "CHARACTERISTICS", "CHANNELS", "DATA-ID",
    "VALUE",
}  # fmt: skip
_UNQUOTED = {
    "BANDWIDTH", "AVERAGE-BANDWIDTH", "RESOLUTION", "FRAME-RATE", "HDCP-LEVEL", "VIDEO-RANGE", "TYPE", "DEFAULT", "AUTOSELECT", "FORCED",
    "METHOD", "IV", "TIME-OFFSET", "PRECISE", "DURATION", "PLANNED-DURATION", "END-ON-NEXT",
}  # fmt: skip
_DECIMAL = re.compile(r"\d+(\.\d+)?")
_FORMS = {
    "BANDWIDTH": re.compile(r"\d+"),
    "AVERAGE-BANDWIDTH": re.compile(r"\d+"),
    "RESOLUTION": re.compile(r"\d+x\d+"),
    "FRAME-RATE": _DECIMAL,
    "DURATION": _DECIMAL,
    "PLANNED-DURATION": _DECIMAL,
}


def respelt(line: str) -> str:
    """Return a tag of RFC 8216 with a proper attribute list: no blanks around the commas, quotes where they belong, nothing twice.

    What is no attribute, or can't be what it says it is, is left out. All other tags, and lists that are proper, stay as they are.
    """
    if not line.startswith(_LISTS):
        return line
    spelt = {name: _value(name, value.strip()) for name, value in attributes(line).items()}
    sound = {name: value for name, value in spelt.items() if value and (name not in _FORMS or _FORMS[name].fullmatch(value))}
    return line.partition(":")[0] + ":" + ",".join(f"{name}={value}" for name, value in sound.items())


def _value(name: str, value: str) -> str:
    if name in _QUOTED and value and not value.startswith('"'):
        return f'"{value}"'
    return value.strip('" ') if name in _UNQUOTED else value
