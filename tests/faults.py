"""The fault table: what real sources do (hls-rules C), one row each, and what must come out of the relay.

For every row, whatever it says: no rule of live HLS is broken, ENDLIST is never written, each piece comes out once, in order and byte
for byte, or is a GAP where it was not to be had, and players are never more than 2.5 target durations without anything new while there
is something. A row says what else: which repairs are counted, which pieces can't be had, how many DISCONTINUITYs there may be.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Container
from datetime import timedelta

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from tests.faulty_source import Answering, Ask, Fault, Reply, Run, Source, media, playlist
from tests.virtual import EPOCH

ANY = range(10**6)
BAD = range(10, 18)
"""The pieces that a fault of segments hits; they are the newest ones from 4 to 12 target durations on."""
DOWN_TD, UP_TD = 6.0, 9.0
"""A source that is away is away for three target durations: half of what it lists."""
FAILED_LOADS = (("hlsrelay_playlist_loads_total", "failed"),)
GAPS = (("hlsrelay_segments_total", "gap"),)

LOAD_FAILED = "load_failed"
SEGMENT_LOST = "segment_lost"
REFETCHED = "segment_refetched"
SURVEYED_AGAIN = "source_surveyed_again"
BYTE_ORDER_MARK = "byte_order_mark"
MAP_CHANGED = "map_changed"
DATES_JUMPED = "dates_jumped"


def playlists(make: Callable[[Ask], Reply | None], begin_td: float = 0.0, end_td: float = math.inf) -> Answering:
    """Answer for the media playlist between two moments."""
    return lambda ask: make(ask) if ask.is_playlist and begin_td <= ask.td < end_td else None


def segments(make: Callable[[Ask], Reply | None], pieces: Container[int] = BAD, times: float = math.inf) -> Answering:
    """Answer for these pieces, the first *times* that each is asked for."""
    return lambda ask: make(ask) if ask.piece is not None and ask.piece in pieces and ask.again < times else None


def all_of(*answers: Answering) -> Answering:
    """Answer as the first that does."""
    return lambda ask: next((reply for answer in answers if (reply := answer(ask)) is not None), None)


def body(ask: Ask) -> bytes:
    """Return the whole segment that is asked for."""
    assert ask.piece is not None
    return ask.source.body(ask.piece)


def away(name: str, how: str, reply: Reply | None) -> Fault:
    """A playlist that can't be had for three target durations."""
    assert reply is not None
    answer = playlists(lambda _: reply, DOWN_TD, UP_TD)
    return Fault(name, how, answer, returns_td=UP_TD, repairs=(LOAD_FAILED,), counted=FAILED_LOADS)


def odd(name: str, how: str, make: Callable[[str], Reply], *repairs: str) -> Fault:
    """A playlist that is always odd."""
    return Fault(name, how, playlists(lambda ask: make(ask.source.text())), repairs=repairs)


def part(ask: Ask, share: float, *, packets: bool = False) -> bytes:
    """Return the beginning of a segment."""
    whole = body(ask)
    length = int(len(whole) * share) // 188 * 188
    return whole[: length if packets else length + 37]


# The playlist -------------------------------------------------------------------------------------------------------------------------


def stale(ask: Ask) -> Reply | None:
    """Of the edges behind one name one is two target durations behind; nobody gets it more than twice in a row."""
    source = ask.source
    in_a_row = source.notes.get("stale", 0.0)
    if in_a_row >= 2 or source.random.random() >= 0.5:
        source.notes["stale"] = 0.0
        return None
    source.notes["stale"] = in_a_row + 1
    return playlist(source.text(source.newest() - 2))


def cut_off(ask: Ask) -> Reply | None:
    text = ask.source.text()
    whole = text.rstrip("\n")
    return playlist(whole[: -ask.source.random.randint(1, 5)]) if ask.source.random.random() < 0.5 else None


def newest_twice(ask: Ask) -> Reply | None:
    text = ask.source.text()
    twice = [*text.splitlines(), *text.splitlines()[-2:], ""]
    return playlist("\n".join(twice)) if ask.source.newest() % 2 else None


def bad_extinf(source: Source, piece: int, number: int, lines: list[str]) -> list[str]:
    length_s = f"{source.target_s:g}"
    wrong = (f"#EXTINF:-{length_s},", f"#EXTINF:{length_s}", "#EXTINF:abc,", "#EXTINF:,", "#EXTINF:1e9,", "#EXTINF:99999999,", "")
    return [one for line in lines for one in ([wrong[piece % 7]] if line.startswith("#EXTINF") else [line]) if one]


def head_with(line: str) -> Callable[[Source, int, list[str]], list[str]]:
    """Replace TARGETDURATION."""
    return lambda source, newest, lines: [one for old in lines if (one := line if "TARGETDURATION" in old else old)]


def growing_head(source: Source, newest: int, lines: list[str]) -> list[str]:
    longest_td = max(source.fault.length_td(piece) for piece in range(newest + 1))
    return [f"#EXT-X-TARGETDURATION:{math.ceil(longest_td * source.target_s)}" if "TARGETDURATION" in one else one for one in lines]


def dates_jump(source: Source, piece: int, number: int, lines: list[str]) -> list[str]:
    """The wall clock of the encoder is set: its time stamps go on, and so does its picture."""
    when = EPOCH + timedelta(seconds=(piece + (1.5 if piece >= 14 else 0.0)) * source.target_s)
    return [f"#EXT-X-PROGRAM-DATE-TIME:{when.isoformat(timespec='milliseconds')}", *lines[-2:]]


def late_sequence(ask: Ask) -> Reply:
    lines = ask.source.text().splitlines()
    number = next(line for line in lines if line.startswith("#EXT-X-MEDIA-SEQUENCE"))
    lines.remove(number)
    return playlist("\n".join([*lines[:-2], number, *lines[-2:], ""]))


def ending(ask: Ask) -> Reply:
    return playlist(ask.source.text() + "#EXT-X-ENDLIST\n")


# Two origins --------------------------------------------------------------------------------------------------------------------------


def alternating(*, renamed: bool) -> Answering:
    """From 5 to 18 target durations on each load is answered by either of two origins, whose numbers have nothing in common."""

    def answer(ask: Ask) -> Reply | None:
        source = ask.source
        if ask.is_playlist and 5 <= ask.td < 18 and source.random.random() < 0.5:
            text = source.text(shift=5000)
            return playlist(text.replace("\na-", "\nother-") if renamed else text)
        name = ask.path.rpartition("/")[2]
        if name.startswith("other-"):
            piece = source.piece(name.replace("other-", "a-"))
            return Reply(404) if piece is None else media(source.body(piece))
        return None

    return answer


# Tokens, redirects, cookies -----------------------------------------------------------------------------------------------------------


def token(ask: Ask) -> str:
    """Return a new token."""
    made = f"{ask.source.random.getrandbits(48):012x}"
    ask.source.notes[made] = ask.td
    return made


def holds(ask: Ask, given: str, for_td: float) -> bool:
    """Whether a token was given, and not too long ago."""
    return ask.td - ask.source.notes.get(given, -math.inf) <= for_td


def token_in_every_url(ask: Ask) -> Reply | None:
    if ask.is_playlist:
        fresh = token(ask)
        return playlist(ask.source.text().replace(".ts", f".ts?token={fresh}"))
    return None if holds(ask, ask.query.get("token", ""), 2.5) else Reply(403)


def redirected_by_query(ask: Ask) -> Reply | None:
    if ask.path == "index.m3u8":
        return Reply(302, headers=(("Location", f"live.m3u8?token={token(ask)}"),))
    if ask.path == "live.m3u8":
        return None if holds(ask, ask.query.get("token", ""), 1.0) else Reply(403)
    if "token" not in ask.query:
        return Reply(302, headers=(("Location", f"{ask.path}?token={token(ask)}"),))
    return None if holds(ask, ask.query["token"], 1.0) else Reply(403)


def redirected_by_path(ask: Ask) -> Reply | None:
    if ask.path == "index.m3u8":
        return Reply(302, headers=(("Location", f"{token(ask)}/live.m3u8"),))
    return None if holds(ask, ask.path.partition("/")[0], 3.0) else Reply(403)


def child_expires(ask: Ask) -> Reply | None:
    if ask.path == "index.m3u8":
        inf = '#EXT-X-STREAM-INF:BANDWIDTH=900000,RESOLUTION=1280x720,CODECS="avc1.640028,mp4a.40.2"'
        return playlist(f"#EXTM3U\n{inf}\nlive.m3u8?token={token(ask)}\n")
    if ask.is_playlist:
        return None if holds(ask, ask.query.get("token", ""), 4.0) else Reply(403)
    return None


def cookies(ask: Ask) -> Reply | None:
    """Every answer sets the cookie anew; one of the last eight is asked for, but for the playlist."""
    given = dict(pair.strip().partition("=")[::2] for pair in ask.headers.get("cookie", "").split(";"))
    known = sorted(ask.source.notes, key=lambda one: ask.source.notes[one])[-8:]
    if not ask.is_playlist and given.get("pass") not in known:
        return Reply(403)
    good = ask.source.good(ask)
    cookie = ("Set-Cookie", f"pass={token(ask)}; Path=/; HttpOnly")
    return Reply(good.status, good.body, (*good.headers, cookie))


# Keys and init sections ---------------------------------------------------------------------------------------------------------------

KEYS = {f"key-{index}.bin": bytes(range(index, index + 16)) for index in range(20)}


def key_of(piece: int) -> str:
    return f"key-{piece // 3}.bin"


def with_key(source: Source, piece: int, number: int, lines: list[str]) -> list[str]:
    return [f'#EXT-X-KEY:METHOD=AES-128,URI="{key_of(piece)}"', *lines]


def sealed(piece: int, number: int, plain: bytes) -> bytes:
    """AES-128 with the media sequence number as IV, which the playlist does not write (RFC 8216 5.2)."""
    padder = PKCS7(128).padder()
    cipher = Cipher(algorithms.AES(KEYS[key_of(piece)]), modes.CBC(number.to_bytes(16))).encryptor()
    return cipher.update(padder.update(plain) + padder.finalize()) + cipher.finalize()


INITS = {"init-a.mp4": b"\0\0\0\x08free" * 3, "init-b.mp4": b"\0\0\0\x08skip" * 5}


# The encoder --------------------------------------------------------------------------------------------------------------------------

RESET = Run(14, 0, name="b", pause_td=1.5)
RESET_BACK_TD = 10.5
"""When the first piece after RESET is listed."""


def query_only(source: Source, piece: int, number: int, lines: list[str]) -> list[str]:
    return [*lines[:-1], f"?segment={lines[-1]}"]


def by_query(ask: Ask) -> Reply | None:
    piece = ask.source.piece(ask.query.get("segment", ""))
    return media(ask.source.body(piece)) if piece is not None else None


def elsewhere(source: Source, piece: int, number: int, lines: list[str]) -> list[str]:
    host = source.base.partition("://")[2]
    return [*lines[:-1], f"//{host}/{lines[-1]}"]


def unzipped(text: str) -> Reply:
    return Reply(body=gzip.compress(text.encode()), headers=(("Content-Type", "audio/x-mpegurl"), ("Content-Encoding", "gzip")))


FAULTS = (
    # The numbering
    Fault("reset_to_0", "the encoder restarts with number 0, other names, and time from 0", runs=(RESET,), repairs=("source_reset",),
          returns_td=RESET_BACK_TD, cuts=1),
    Fault("reset_to_0_same_names", "the encoder restarts, and its names and numbers are those of its first life",
          runs=(Run(0, 0, clock=False), Run(14, 0, pause_td=1.5)), repairs=("source_reset",), returns_td=RESET_BACK_TD, cuts=1),
    Fault("same_file_again", "the encoder restarts and plays the same file from its beginning: names, numbers and bytes come again",
          runs=(Run(0, 0, clock=False), Run(20, 0, pause_td=1.5, replays=True)), repairs=("source_reset",), returns_td=16.5, runs_td=30.0,
          cuts=1),
    Fault("reset_to_ahead", "the encoder restarts with numbers far ahead", runs=(Run(14, 90_000, name="b", pause_td=1.5),),
          repairs=("source_reset",), returns_td=RESET_BACK_TD, cuts=1),
    Fault("jump_small", "the numbers jump by 3, the segments stay", runs=(Run(14, 117, name_first=114, fresh=False, clock=False),),
          repairs=("renumbered",)),
    Fault("jump_large", "the numbers jump by 1000, the segments stay", runs=(Run(14, 1114, name_first=114, fresh=False, clock=False),),
          repairs=("renumbered",)),
    Fault("fall_back", "the numbers fall by 50, the segments stay", runs=(Run(14, 64, name_first=114, fresh=False, clock=False),),
          repairs=("renumbered",)),
    Fault("hole_small", "away for so long that two segments are gone", playlists(lambda _: Reply(503), 4.0, 12.0), returns_td=12.0,
          repairs=("hole_filled", LOAD_FAILED), lost=frozenset(range(9, 12)), most_gaps=3, counted=(*FAILED_LOADS, *GAPS)),
    Fault("hole_large", "away for so long that more is gone than the window lists", playlists(lambda _: Reply(503), 4.0, 17.0),
          returns_td=17.0, repairs=("hole_skipped", LOAD_FAILED), lost=frozenset(range(9, 20)), cuts=1, counted=FAILED_LOADS),
    Fault("stale_edge", "now and then a load brings the playlist of two target durations ago", playlists(stale, 5.0, 16.0),
          repairs=("stale_playlist",)),
    Fault("two_origins_same_names", "two origins take turns; their numbers have nothing in common, their names are the same",
          alternating(renamed=False), repairs=("renumbered",)),
    Fault("two_origins_other_names", "two origins take turns; neither numbers nor names have anything in common",
          alternating(renamed=True)),
    Fault("window_of_1", "the playlist lists one segment, not always on time", listed=1, jitter_td=0.4),
    Fault("window_of_2", "the playlist lists two segments, not always on time", listed=2, jitter_td=0.4),
    Fault("ended_and_resumed", "ENDLIST, and almost four target durations later the playlist goes on", playlists(ending, 6.0, 9.7),
          runs=(Run(12, 112, pause_td=2.8, fresh=False, clock=False),), returns_td=9.8),
    Fault("ended_and_reset", "ENDLIST, and the encoder restarts with number 0", playlists(ending, 9.0, 10.4), runs=(RESET,),
          repairs=("source_reset",), returns_td=RESET_BACK_TD, cuts=1),
    # Segments
    Fault("404_for_a_moment", "the newest segment is not there when it is asked for first", segments(lambda _: Reply(404), times=2),
          repairs=(REFETCHED,)),
    Fault("403_for_a_moment", "the newest segment is refused when it is asked for first", segments(lambda _: Reply(403), times=2),
          repairs=(REFETCHED,)),
    Fault("404_for_ever", "one segment is never there", segments(lambda _: Reply(404), {12}), lost=frozenset({12}), most_gaps=1,
          counted=GAPS, repairs=(SEGMENT_LOST,), pause_td=3.5),
    Fault("403_for_ever", "one segment is always refused", segments(lambda _: Reply(403), {12}), lost=frozenset({12}), most_gaps=1,
          counted=GAPS, repairs=(SEGMENT_LOST,), pause_td=3.5),
    Fault("truncated", "the line goes dead in the middle of the body", repairs=(REFETCHED,),
          answer=segments(lambda ask: Reply(body=body(ask), sent=len(body(ask)) // 2), times=2)),
    Fault("truncated_chunked", "the line goes dead between two chunks", repairs=(REFETCHED,),
          answer=segments(lambda ask: Reply(body=body(ask), chunked=True, sent=len(body(ask)) // 2), times=2)),
    Fault("truncated_for_ever", "of one segment the second half never comes", lost=frozenset({12}), most_gaps=1, counted=GAPS,
          repairs=(SEGMENT_LOST,),
          answer=segments(lambda ask: Reply(body=body(ask), sent=len(body(ask)) // 2), {12}), pause_td=3.5),
    Fault("length_too_large", "Content-Length promises more than comes", repairs=(REFETCHED,),
          answer=segments(lambda ask: Reply(body=body(ask), declared=len(body(ask)) + 100, sent=len(body(ask))), times=2)),
    Fault("length_too_small", "Content-Length promises less than comes", repairs=(REFETCHED,),
          answer=segments(lambda ask: Reply(body=body(ask), declared=len(body(ask)) - 100), times=2)),
    Fault("growing", "a segment is listed while it is still written", repairs=(REFETCHED,),
          answer=segments(lambda ask: media(part(ask, (0.4, 0.7)[ask.again])), times=2)),
    Fault("growing_by_packets", "a segment is listed while it is still written, a packet at a time", repairs=(REFETCHED,),
          answer=segments(lambda ask: media(part(ask, (0.4, 0.7)[ask.again], packets=True)), times=2)),
    Fault("empty_segment", "a segment is empty at first", segments(lambda _: media(b""), times=2), repairs=(REFETCHED,)),
    Fault("html_segment", "a segment is a web page at first", segments(lambda _: media(b"<html>please wait</html>"), times=1),
          repairs=(REFETCHED,)),
    Fault("drip_once", "one byte a second at first, at full speed when asked again", repairs=(REFETCHED,), pause_td=3.5,
          answer=segments(lambda ask: Reply(body=body(ask), byte_takes_s=1.0), {12}, times=1)),
    Fault("drip_for_ever", "one segment comes at a byte a second", segments(lambda ask: Reply(body=body(ask), byte_takes_s=1.0), {12}),
          lost=frozenset({12}), most_gaps=1, counted=GAPS, repairs=(SEGMENT_LOST,), pause_td=3.5),
    # Playlists
    away("html_with_200", "a web page with status 200", Reply(body=b"<!DOCTYPE html><html>login</html>")),
    away("empty_body", "nothing, with status 200", Reply()),
    away("no_extm3u", "a playlist without its first line", playlist("#EXTINF:4.0,\na-1.ts\n")),
    away("zero_segments", "a playlist without segments", playlist("#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n")),
    away("playlist_404", "404", Reply(404)),
    away("playlist_403", "403", Reply(403)),
    away("playlist_500", "500", Reply(500)),
    away("hangs_up", "the connection is closed without a word", Reply(0)),
    Fault("playlist_truncated", "half of the playlist, and the line goes dead", counted=FAILED_LOADS, returns_td=UP_TD,
          repairs=(LOAD_FAILED,),
          answer=playlists(lambda ask: Reply(body=ask.source.text().encode(), sent=150), DOWN_TD, UP_TD)),
    Fault("playlist_drips", "the playlist comes at a byte a second", counted=FAILED_LOADS, returns_td=UP_TD, repairs=(LOAD_FAILED,),
          answer=playlists(lambda ask: Reply(body=ask.source.text().encode(), byte_takes_s=1.0), DOWN_TD, UP_TD)),
    Fault("last_line_cut_off", "every second playlist ends in the middle of its last line", playlists(cut_off),
          repairs=("last_line_cut_off",)),
    Fault("newest_twice", "every second playlist lists its newest segment twice", playlists(newest_twice), repairs=("duplicate_segment",)),
    odd("bom", "a byte order mark", lambda text: playlist(b"\xef\xbb\xbf" + text.encode()), BYTE_ORDER_MARK),
    odd("crlf", "lines end in CR LF", lambda text: playlist(text.replace("\n", "\r\n"))),
    Fault("target_duration_0", "TARGETDURATION is 0", head=head_with("#EXT-X-TARGETDURATION:0"), repairs=("target_duration_bad",)),
    Fault("target_duration_missing", "there is no TARGETDURATION", head=head_with(""), repairs=("target_duration_bad",)),
    Fault("target_duration_grows", "segments and TARGETDURATION grow by half", head=growing_head, splits=True, pause_td=3.5,
          length_td=lambda piece: 2.0 if piece >= 14 else 1.0, runs_td=30.0),
    Fault("bad_extinf", "EXTINF negative, without comma, no number, missing, far too large", entry=bad_extinf,
          repairs=("extinf_bad", "extinf_missing")),
    Fault("dates_jump", "PROGRAM-DATE-TIME jumps without DISCONTINUITY", entry=dates_jump, repairs=(DATES_JUMPED,), cuts=1),
    Fault("sequence_late", "MEDIA-SEQUENCE after the first segment", playlists(late_sequence), repairs=("media_sequence_late",)),
    # What is asked for where, and how it comes
    Fault("token_in_url", "every load brings other tokens, which expire", token_in_every_url),
    Fault("redirect_expires", "playlist and segments redirect to tokenised URLs that expire", redirected_by_query),
    Fault("redirect_token_in_path", "the playlist redirects to a path with a token, other in every load", redirected_by_path),
    Fault("child_expires", "the variant's URL expires with 403", child_expires, repairs=(SURVEYED_AGAIN,)),
    Fault("cookies", "segments want a cookie that changes with every answer", cookies),
    odd("gzip", "the playlist is compressed", unzipped),
    Fault("chunked", "everything comes in chunks, without Content-Length", all_of(
        playlists(lambda ask: Reply(body=ask.source.text().encode(), chunked=True)),
        segments(lambda ask: Reply(body=body(ask), chunked=True), ANY))),
    Fault("http_1_0", "HTTP/1.0: the end of the connection is the end of the body", all_of(
        playlists(lambda ask: Reply(body=ask.source.text().encode(), version="1.0", without_length=True)),
        segments(lambda ask: Reply(body=body(ask), version="1.0", without_length=True), ANY))),
    Fault("wrong_content_type", "the playlist says text/html, segments say text/plain", all_of(
        playlists(lambda ask: Reply(body=ask.source.text().encode(), headers=(("Content-Type", "text/html"),))),
        segments(lambda ask: Reply(body=body(ask), headers=(("Content-Type", "text/plain"),)), ANY))),
    Fault("network_path_uris", "URIs begin with //host", entry=elsewhere),
    Fault("query_only_uris", "URIs are a query and nothing else", by_query, entry=query_only),
    Fault("query_only_and_away", "URIs are a query and nothing else, and the source is away until two segments are gone",
          all_of(playlists(lambda _: Reply(503), 4.0, 12.0), by_query), entry=query_only, returns_td=12.0,
          repairs=("hole_filled", LOAD_FAILED), lost=frozenset(range(9, 12)), most_gaps=3, counted=(*FAILED_LOADS, *GAPS)),
    # What the media need beside them
    Fault("key_rotation", "a new key every three segments, without IV", entry=with_key, seal=sealed, extras=KEYS),
    Fault("key_rotation_and_reset", "a new key every three segments, without IV, and the encoder restarts", entry=with_key, seal=sealed,
          extras=KEYS, runs=(RESET,), repairs=("source_reset",), returns_td=RESET_BACK_TD, cuts=1),
    Fault("map_changes", "another MAP without DISCONTINUITY", extras=INITS,
          init=lambda piece: "init-b.mp4" if piece >= 14 else "init-a.mp4",
          repairs=(MAP_CHANGED,), cuts=1),
)  # fmt: skip
"""Seeded by their names: a row does the same in every run."""
