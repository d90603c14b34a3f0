"""Playlists as strangers may send them, for tests.fuzz: by a grammar, by mutating others, and blown up. All by chance alone."""

from __future__ import annotations

import random
import re

from tests.playlists import at

History = list[tuple[int, bytes]]
"""Playlists, each with the seconds since the one before."""

_WORDS = """
#EXTM3U #EXTINF:4, #EXTINF:4.0,title #EXTINF: #EXTINF:-1, #EXTINF:1e9, #EXTINF:0.0001, #EXTINF:nan, #EXT-X-TARGETDURATION:4
#EXT-X-TARGETDURATION:0 #EXT-X-TARGETDURATION:60 #EXT-X-MEDIA-SEQUENCE:7 #EXT-X-MEDIA-SEQUENCE:18446744073709551615
#EXT-X-DISCONTINUITY-SEQUENCE:3 #EXT-X-DISCONTINUITY #EXT-X-GAP #EXT-X-ENDLIST #EXT-X-I-FRAMES-ONLY #EXT-X-BYTERANGE:10@5
#EXT-X-BYTERANGE:10 #EXT-X-BYTERANGE:-1@-1 #EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:08Z
#EXT-X-PROGRAM-DATE-TIME:1990-01-01T00:00:00+14:00 #EXT-X-KEY:METHOD=AES-128,URI="k" #EXT-X-KEY:METHOD=NONE
#EXT-X-KEY:METHOD=SAMPLE-AES,URI="skd://x",KEYFORMAT="com.apple" #EXT-X-MAP:URI="i.mp4" #EXT-X-MAP:URI="i.mp4",BYTERANGE="700@10"
#EXT-X-DATERANGE:ID="a",START-DATE="2026-01-01T00:00:00Z",DURATION=5 #EXT-X-CUE-OUT:30 #EXT-X-CUE-IN
#EXT-X-DATERANGE:ID="b",START-DATE="9999-12-31T23:59:59Z",END-ON-NEXT=YES,CLASS="c" #EXT-X-PART:DURATION=1,URI="p.ts"
#EXT-X-SKIP:SKIPPED-SEGMENTS=3 #EXT-X-DEFINE:NAME="a",VALUE="b" #EXT-X-DEFINE:IMPORT="imported" #EXT-X-DEFINE:QUERYPARAM="q" {$a}
{$imported} ../../etc/passwd file:///x http://[ //host/x ?q=1 a.ts b.m4s
#EXT-X-STREAM-INF:BANDWIDTH=1,RESOLUTION=16x16,CODECS="a,b",AUDIO="a" #EXT-X-SESSION-KEY:METHOD=AES-128
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="n",LANGUAGE="en",URI="a.m3u8" #EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=1,URI="i.m3u8" #EXT
#EXT-MINE:x=1 #EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES #EXT-X-PRELOAD-HINT:TYPE=PART,URI="p" #EXT-X-INDEPENDENT-SEGMENTS
#EXT-X-BITRATE:x
"""
WORDS = _WORDS.split()
PIECES = [
    '"',
    ",",
    "=",
    ":",
    "#",
    "@",
    "\r\n",
    "\n",
    "\t",
    "\x00",
    "\x85",
    "\u2028",
    "\ufeff",
    "\ud7ff",
    "%",
    "{$",
    "}",
    " ",
    "9" * 30,
    "-",
    "A=",
    'A="',
]


def grammar(rng: random.Random, first: int, name: str) -> bytes:
    """Return a media playlist, mostly as it should be."""
    lines = ["#EXTM3U", f"#EXT-X-TARGETDURATION:{rng.choice([1, 4, 6, 10])}", f"#EXT-X-MEDIA-SEQUENCE:{first}"]
    pdt = rng.random() < 0.3
    for number in range(first, first + rng.choice([1, 3, 6, 6, 6, 12, 40])):
        if rng.random() < 0.15:
            lines.append(rng.choice(WORDS))
        if pdt:
            lines.append(f"#EXT-X-PROGRAM-DATE-TIME:{at(number % 10**6 * 4.0).isoformat()}")
        lines += [f"#EXTINF:{rng.choice(['4.0', '4', '3.96', '0.5', '10', '70'])},", f"{name}{number % rng.choice([10, 10**9])}.ts"]
    return "\n".join([*lines, ""]).encode()


def generated(rng: random.Random) -> History:
    """Return a history that an encoder might make that restarts, skips, stalls and changes its mind."""
    first, name = rng.choice([0, 7, 1000, 2**63]), "a"
    history: History = []
    for _ in range(rng.choice([1, 2, 4, 8, 12])):
        history.append((rng.choice([0, 2, 4, 4, 8, 30, 600]) if history else 0, grammar(rng, first, name)))
        first += rng.choice([0, 1, 1, 1, 2, 3, 7, 100, -1, -3])
        if rng.random() < 0.1:
            first, name = rng.choice([0, first]), rng.choice("abc")
        first = max(0, first)
    return history


def mutated(rng: random.Random, body: bytes, other: bytes) -> bytes:
    """Return *body* with something done to it."""
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        where = rng.randrange(len(body) + 1)
        upto = min(len(body), where + rng.choice([1, 1, 4, 32, 500]))
        lines = body.split(b"\n")
        index = rng.randrange(len(lines))
        match rng.randrange(10):
            case 0:
                body = body[:where] + bytes([rng.randrange(256)]) + body[where + 1 :]
            case 1:
                body = body[:where] + body[upto:]
            case 2:
                body = body[:where] + rng.choice(PIECES).encode("utf-8", "replace") + body[where:]
            case 3:
                body = b"\n".join([*lines[:index], rng.choice(WORDS).encode(), *lines[index:]])
            case 4:
                body = b"\n".join([*lines[:index], *lines[index + 1 :]])
            case 5:
                theirs = other.split(b"\n")
                start = rng.randrange(len(theirs))
                body = b"\n".join([*lines[:index], *theirs[start : start + rng.choice([1, 3, 10])], *lines[index:]])
            case 6:
                body = re.sub(rb"\d+", lambda found: rng.choice([found[0], b"0", b"1", b"99999999999", b"-1", b"1.5"]), body)
            case 7:
                body = b"\n".join(sorted(lines, key=lambda _: rng.random())) if rng.random() < 0.1 else body
            case 8:
                body = body[:where] + body[where:upto] * rng.choice([2, 3, 10]) + body[upto:]
            case _:
                body = body[:where] + other[rng.randrange(len(other) + 1) :][:200] + body[where:]
    return body


def blown(rng: random.Random, body: bytes) -> bytes:
    """Return a large body made of a small piece, many times: what takes its square of anything shows here."""
    piece = rng.choice([*WORDS, *PIECES]).encode("utf-8", "replace") + rng.choice([b"", b"\n", b",", b"\na.ts\n"])
    if rng.random() < 0.5:
        where = rng.randrange(len(body) + 1)
        piece = body[where : where + rng.choice([1, 2, 10, 60])]
    size = rng.choice([20_000, 60_000, 250_000, 1_000_000])
    where = rng.randrange(len(body) + 1)
    return body[:where] + (piece * (size // max(1, len(piece))))[:size] + body[where:]
