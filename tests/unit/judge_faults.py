"""Each fault that the judge has to find, with the rule that it breaks."""

from __future__ import annotations

from dataclasses import replace

from hlsrelay.judge import Severity
from hlsrelay.media import AudioInfo, Container
from tests.playlists import at
from tests.unit.judging import (
    AT_60,
    ENDED,
    ENDS,
    GOOD,
    HEADERS,
    HIGH,
    HINT,
    IV,
    KEY,
    LISTED,
    LONG,
    LOW,
    MAP,
    MASTER,
    MPEG_AUDIO,
    ON_NEXT,
    RANGE,
    SIZE,
    E,
    Fault,
    Item,
    Version,
    W,
    cut_version,
    in_a_variant,
    master,
    media,
    no_pdt,
    only,
    probed,
    then,
    variants,
    version,
    with_item,
    with_parts,
)


def _defining(define: str, needs: str = "8", head: tuple[str, ...] = ()) -> Version:
    return version(10, head=(define, *head), version=needs)


def _naming(define: str) -> Version:
    return with_item(10, Item(10, "{$a}.ts"), head=(define,), version="8")


FAULTS: dict[str, tuple[Fault, str, Severity]] = {
    # 1: the text
    "a byte order mark": (only(b"\xef\xbb\xbf" + GOOD.text().encode()), "A1", E),
    "a control character": (only(GOOD.text().replace("10.ts", "10\x07.ts")), "A1", E),
    "a tab": (only(version(10, head=("# a\tcomment",))), "A1", E),
    "bytes that are no UTF-8": (only(GOOD.text().encode().replace(b"EXTINF:4.000,", b"EXTINF:4.000,\xff")), "A1", E),
    "HTML": (only("<!DOCTYPE html>\n<p>Log in</p>\n"), "A1", E),
    "no EXTM3U": (only(GOOD.text().removeprefix("#EXTM3U\n")), "A1", E),
    "the wrong type": (only(GOOD, headers={**HEADERS, "content-type": "text/html; charset=utf-8"}), "A1", E),
    "no type": (only(GOOD, headers={"content-encoding": "gzip"}), "A1", E),
    "a type that is not registered": (only(GOOD, headers={**HEADERS, "content-type": "application/x-mpegURL"}), "A1", W),
    "a tag twice": (only(version(10, head=("#EXT-X-VERSION:3",))), "A1", E),
    "a variable that nobody defines": (only(_naming('#EXT-X-DEFINE:NAME="b",VALUE="x"')), "A1", E),
    "a variable that is imported from nowhere": (only(_defining('#EXT-X-DEFINE:IMPORT="a"')), "A1", E),
    "a variable that the URL does not have": (only(_defining('#EXT-X-DEFINE:QUERYPARAM="a"', "11")), "A1", E),
    "a variable twice": (only(_defining('#EXT-X-DEFINE:NAME="a",VALUE="x"', head=('#EXT-X-DEFINE:NAME="a",VALUE="y"',))), "A1", E),
    "a DEFINE without VALUE": (only(_defining('#EXT-X-DEFINE:NAME="a"')), "A1", E),
    "an EXTINF without a comma": (only(GOOD.text().replace("4.000,", "4.000")), "A1", E),
    "a negative EXTINF": (only(with_item(10, Item(10, extinf="-4.000"))), "A1", E),
    "a URI without EXTINF": (only(version(10, tail=("17.ts",))), "A1", E),
    "two EXTINFs": (only(with_item(10, Item(10, tags=("#EXTINF:4.000,",)))), "A1", E),
    "a blank in an attribute list": (only(version(10, head=(KEY.replace(",", ", ") + IV,))), "A1", E),
    "a comma too many": (only(version(10, head=("#EXT-X-START:TIME-OFFSET=1,",))), "A1", E),
    "a size that is none": (only(master(RESOLUTION="720p"), where=MASTER), "A1", E),
    "an attribute twice": (only(version(10, head=(KEY + IV + IV,))), "A1", E),
    "tags of both kinds of playlist": (only(version(10, head=('#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="n"',))), "A1", E),
    "a STREAM-INF without URI": (only(master().replace("low/index.m3u8\n", "#EXT-X-UNKNOWN\n"), where=MASTER), "A1", E),
    # 2: the target duration
    "a target duration that changes": (then(version(11, target="5")), "A2", E),
    "a target duration that is no integer": (only(version(10, target="4.0")), "A2", E),
    "no target duration": (only(GOOD.text().replace("#EXT-X-TARGETDURATION:4\n", "")), "A2", E),
    "an EXTINF above the target duration": (then(with_item(11, Item(17, extinf="5.000"))), "A2", E),
    "an EXTINF that rounds up or not": (then(with_item(11, Item(17, extinf="4.500"))), "A2", W),
    # 3: the edits
    "a listed URI that changes": (then(with_item(11, Item(13, "other.ts"))), "A3", E),
    "a listed URI whose token changes": (then(with_item(11, Item(13, "13.ts?token=2"))), "A3", E),
    "a listed EXTINF that changes": (then(with_item(11, Item(13, extinf="3.900"))), "A3", E),
    "a DISCONTINUITY that comes later": (then(with_item(11, Item(13, tags=("#EXT-X-DISCONTINUITY",)))), "A3", E),
    "a GAP that comes later": (then(with_item(11, Item(13, tags=("#EXT-X-GAP",)))), "A3", E),
    "a KEY that comes later": (then(with_item(11, Item(13, tags=(KEY + IV,)))), "A3", E),
    "a cue that comes later": (then(with_item(11, Item(13, tags=("#EXT-X-CUE-OUT:30",)))), "A3", E),
    "a title that comes later": (then(version(11).text().replace("4.000,\n13.ts", "4.000,News\n13.ts")), "A3", E),
    "segments that are independent no more": (only(replace(GOOD, head=("#EXT-X-INDEPENDENT-SEGMENTS",)), version(11)), "A3", E),
    "segments taken back from the end": (then(version(10, listed=6)), "A3", E),
    "an older version served in between": (then(version(11), GOOD, version(12)), "A3", E),
    "a playlist that is cut in a line": (then(version(11).text()[:-5]), "A3", E),
    "a last line without an end": (only(version(10, tail=("#EXT-X-ENDLIST",)).text().rstrip()), "A1", W),
    "a playlist that is cut after a line": (then(version(11).text().removesuffix("17.ts\n")), "A3", E),
    "an empty playlist": (then(b"", version(11)), "A3", E),
    "a playlist without a segment": (then("\n".join(GOOD.text().splitlines()[:5]) + "\n", version(11)), "A3", E),
    "a playlist that is gone": (lambda watch: watch.load(GOOD).judge.unavailable(HIGH, 404, "HTTP 404", 104.0), "A3", E),
    # 4: the media sequence
    "a sequence that falls": (then(Version(tuple(Item(n, f"b{n}.ts", pdt_s=100.0 + 4 * n) for n in range(LISTED)))), "A4", E),
    "a sequence that skips": (then(version(11, sequence=12)), "A4", E),
    "a sequence that stays though a segment left": (then(version(11, sequence=10)), "A4", E),
    "a sequence that jumps": (then(Version(tuple(Item(n) for n in range(1000, 1007)))), "A4", E),
    "a sequence behind the first segment": (
        only(GOOD.text().replace("#EXT-X-MEDIA-SEQUENCE:10\n", "") + "#EXT-X-MEDIA-SEQUENCE:0\n"),
        "A4",
        E,
    ),
    "a sequence that is negative": (only(version(10, sequence=-1)), "A4", E),
    # 5: the discontinuity sequence
    "a removed DISCONTINUITY that is not counted": (only(cut_version(11, 0), cut_version(12, 0), cut_version(13, 0)), "A5", E),
    "a DISCONTINUITY counted too early": (only(cut_version(11, 0), cut_version(12, 1)), "A5", E),
    "a DISCONTINUITY counted twice": (only(cut_version(12, 0), cut_version(13, 2)), "A5", E),
    "a discontinuity sequence that falls": (then(version(11), version(12, cuts=1)), "A5", E),
    "a discontinuity sequence after a DISCONTINUITY": (
        only(GOOD.text().replace("#EXT-X-DISCONTINUITY-SEQUENCE:0\n", "#EXT-X-DISCONTINUITY\n#EXT-X-DISCONTINUITY-SEQUENCE:0\n")),
        "A5",
        E,
    ),
    "a DISCONTINUITY and no number for it": (
        only(with_item(10, Item(12, tags=("#EXT-X-DISCONTINUITY",))).text().replace("#EXT-X-DISCONTINUITY-SEQUENCE:0\n", "")),
        "A5",
        W,
    ),
    # 6: the window
    "less than three target durations stay": (only(Version(LONG[:11]), Version(LONG[1:11] + LONG[11:12])), "A6", E),
    "less than six segments": (only(version(10, listed=5), version(11, listed=5)), "A6", W),
    # 7, 8, 11: fetching
    "a removed segment that is gone at once": (lambda watch: watch.load(GOOD, version(11)).got(10, status=404), "A7", E),
    "a listed segment that is missing": (lambda watch: watch.load(GOOD).got(12, status=404), "A11", E),
    "a listed segment that fails": (lambda watch: watch.load(GOOD).got(12, status=503), "A8", E),
    "a listed segment that does not come whole": (lambda watch: watch.load(GOOD).got(12, status=0, broken="5 of 9 bytes"), "A8", E),
    "a listed segment that is no media": (lambda watch: watch.load(GOOD).got(12, broken="no program tables"), "A8", E),
    "a segment cut in a packet": (probed(media(10), size=SIZE - 7), "A8", E),
    "a variant that can't be had": (lambda watch: watch.judge.unavailable(LOW, 404, "HTTP 404", 100.0), "A8", E),
    # 9: promises
    "a type EVENT that slides": (
        only(version(10, head=("#EXT-X-PLAYLIST-TYPE:EVENT",)), version(11, head=("#EXT-X-PLAYLIST-TYPE:EVENT",))),
        "A9",
        E,
    ),
    "a type VOD that grows": (
        only(version(10, head=("#EXT-X-PLAYLIST-TYPE:VOD",)), version(10, listed=8, head=("#EXT-X-PLAYLIST-TYPE:VOD",))),
        "A9",
        E,
    ),
    "a type that comes": (then(version(10, listed=8, head=("#EXT-X-PLAYLIST-TYPE:EVENT",))), "A9", E),
    "a type that is none": (only(version(10, head=("#EXT-X-PLAYLIST-TYPE:LIVE",))), "A9", E),
    "an ENDLIST taken back": (then(version(10, tail=("#EXT-X-ENDLIST",)), version(11)), "A9", E),
    "an ENDLIST taken back to what was before": (then(version(10, tail=("#EXT-X-ENDLIST",)), GOOD), "A9", E),
    "a change after ENDLIST": (then(version(10, tail=("#EXT-X-ENDLIST",)), version(10, listed=8, tail=("#EXT-X-ENDLIST",))), "A9", E),
    # 10: media against DISCONTINUITY
    "time stamps that jump": (probed(media(10), media(11, start=9_000_000)), "A10", E),
    "time stamps that begin anew": (probed(media(10), media(11, start=0)), "A10", E),
    "sound that goes": (probed(media(10), media(11, audio=None)), "A10", E),
    "another format": (probed(media(10), MPEG_AUDIO), "A10", E),
    "another codec": (
        probed(media(10), media(11, audio=AudioInfo("ac-3", 11 * 360_000))),
        "A10",
        E,
    ),
    "another picture size": (
        probed(media(10), media(11, video=replace(media(11).video, width=640, height=360))),  # type: ignore[type-var]
        "A10",
        W,
    ),
    "an EXTINF that lies": (probed(media(10), media(11), text=with_item(10, Item(10, extinf="3.700", pdt_s=40.3))), "A-extinf", E),
    # 12: PROGRAM-DATE-TIME
    "a date that jumps": (only(with_item(10, Item(13, pdt_s=62.0))), "A12", E),
    "a date that steps back": (then(with_item(11, Item(17, pdt_s=30.0))), "A12", E),
    "a date that drifts": (then(with_item(11, Item(17, pdt_s=69.0))), "A12", W),
    "a listed date that changes": (then(with_item(11, Item(13, pdt_s=52.2))), "A12", E),
    "a date that is none": (only(GOOD.text().replace(f"DATE-TIME:{at(40).isoformat()}", "DATE-TIME:noon")), "A12", E),
    "a date without zone": (only(GOOD.text().replace("+00:00", "")), "A12", W),
    "no date at all": (only(no_pdt(GOOD)), "A12", W),
    # 13: DATERANGE
    "a DATERANGE that goes too early": (only(version(10, head=(AT_60,)), version(11)), "A13", E),
    "an ID used again": (only(version(10, head=(AT_60,)), version(11, head=(RANGE.format(at(90).isoformat()),))), "A13", E),
    "an ID used again after a while": (
        only(version(10, head=(AT_60.replace("=60.0", "=1"),)), version(16), version(17, head=(RANGE.format(at(70).isoformat()),))),
        "A13",
        E,
    ),
    "a DATERANGE that ends on the next and goes before it": (only(version(10, head=(ON_NEXT,)), version(16)), "A13", E),
    "a DATERANGE that loses an attribute": (only(version(10, head=(AT_60 + ",X-A=1",)), version(11, head=(AT_60,))), "A13", E),
    "a DATERANGE with two ends": (only(version(10, head=(ON_NEXT + ",DURATION=9",))), "A13", E),
    "a DATERANGE that ends before it begins": (only(version(10, head=(ENDS.format(at(30).isoformat()),))), "A13", E),
    "a DATERANGE whose ends disagree": (only(version(10, head=(ENDS.format(at(90).isoformat()) + ",DURATION=9",))), "A13", E),
    "a DATERANGE without ID": (only(version(10, head=(AT_60.replace('ID="ad",', ""),))), "A13", E),
    "a DATERANGE and no date": (only(no_pdt(version(10, head=(AT_60,), tail=("#EXT-X-ENDLIST",)))), "A13", E),
    # 14 to 17: what is in force
    "a KEY that is not repeated": (only(with_item(10, Item(10, tags=(KEY + IV,))), version(11)), "A14", E),
    "a KEY that comes to cover a MAP": (
        only(
            with_item(10, Item(10, tags=(MAP, KEY + IV)), version="6"),
            with_item(11, Item(11, tags=(KEY + IV, MAP)), version="6"),
        ),
        "A14",
        E,
    ),
    "a KEY without URI": (only(version(10, head=("#EXT-X-KEY:METHOD=AES-128" + IV,))), "A14", E),
    "a NONE with more": (only(version(10, head=('#EXT-X-KEY:METHOD=NONE,URI="k"',))), "A14", E),
    "an encrypted MAP without IV": (only(version(10, head=(KEY, MAP), version="6")), "A15", E),
    "an IV that is too long": (only(version(10, head=(KEY + IV + "00",))), "A15", E),
    "a MAP that is not repeated": (only(with_item(10, Item(10, tags=(MAP,)), version="6"), version(11)), "A16", E),
    "fMP4 without MAP by its name": (then(with_item(11, Item(17, "17.m4s"))), "A16", E),
    "fMP4 without MAP by its bytes": (probed(media(10, container=Container.FMP4)), "A16", E),
    "a byte range without its predecessor": (only(with_item(10, Item(10, tags=("#EXT-X-BYTERANGE:1000",)), version="4")), "A17", E),
    "a byte range that is none": (only(with_item(10, Item(10, tags=("#EXT-X-BYTERANGE:@3",)), version="4")), "A17", E),
    # 18: VERSION
    "VERSION too low for a fraction": (only(version(10, version="2")), "A18", E),
    "VERSION too low for a MAP": (only(version(10, head=(MAP,), version="5")), "A18", E),
    "VERSION too low for a byte range": (only(with_item(10, Item(10, tags=("#EXT-X-BYTERANGE:1000@0",)))), "A18", E),
    "VERSION too low for a KEYFORMAT": (only(version(10, head=(KEY + IV + ',KEYFORMAT="x"',))), "A18", E),
    # 20: variants
    "variants with two target durations": (variants(GOOD, version(10, target="5")), "A20", E),
    "variants of which one counts discontinuities": (variants(GOOD, version(10, cuts=1)), "A20", E),
    "variants of which one lags": (variants(version(12, listed=9), version(12)), "A20", E),
    "variants of which one is dated": (variants(ENDED, no_pdt(ENDED)), "A20", E),
    # 21: STREAM-INF
    "no BANDWIDTH": (only(master(BANDWIDTH=""), where=MASTER), "A21", E),
    "no CODECS": (only(master(CODECS=""), where=MASTER), "A21", W),
    "no AVERAGE-BANDWIDTH": (only(master(AVERAGE_BANDWIDTH=""), where=MASTER), "A21", W),
    "an average above the peak": (only(master(AVERAGE_BANDWIDTH="900000"), where=MASTER), "A21", E),
    "BANDWIDTH below the peak": (in_a_variant(None, BANDWIDTH="370000", AVERAGE_BANDWIDTH="360000"), "A21", E),
    "CODECS of another family": (in_a_variant(media(10), CODECS='"hvc1.1.6.L93.B0,mp4a.40.2"'), "A21", E),
    "CODECS without the sound": (in_a_variant(media(10), CODECS='"avc1.64001f"'), "A21", E),
    "CODECS of another level": (in_a_variant(media(10), CODECS='"avc1.640028,mp4a.40.2"'), "A21", W),
    "a RESOLUTION that is not the media's": (in_a_variant(media(10), RESOLUTION="640x360"), "A21", E),
    "no RESOLUTION": (in_a_variant(media(10), RESOLUTION=""), "A21", W),
    "no FRAME-RATE": (in_a_variant(media(10), FRAME_RATE=""), "A21", W),
    # 22: delivery, and timing
    "no gzip": (only(GOOD, headers={"content-type": HEADERS["content-type"]}), "A22", W),
    "media that are redirected": (lambda watch: watch.load(GOOD).got(12, redirected=True), "A22", W),
    "HOLD-BACK too small": (only(replace(GOOD, head=("#EXT-X-SERVER-CONTROL:HOLD-BACK=11.9",))), "A23", E),
    "CAN-SKIP-UNTIL too small": (only(replace(GOOD, head=("#EXT-X-SERVER-CONTROL:CAN-SKIP-UNTIL=23.9",))), "A23", E),
    "PART-HOLD-BACK too small": (
        only(replace(GOOD, head=("#EXT-X-PART-INF:PART-TARGET=1", "#EXT-X-SERVER-CONTROL:PART-HOLD-BACK=1.9"))),
        "A23",
        E,
    ),
    "no PART-HOLD-BACK": (only(replace(GOOD, head=("#EXT-X-PART-INF:PART-TARGET=1",))), "A23", E),
    # 24, 27: parts
    "a part that is too long": (only(with_parts(1.01)), "A24", E),
    "a part that is too short": (only(with_parts(0.84, 1.0)), "A24", E),
    "parts of no target": (only(with_parts(1.0, head=())), "A24", E),
    "a part without a URI": (only(with_parts(1.0, more=("#EXT-X-PART:DURATION=1.0",))), "A24", E),
    "parts without a hint": (only(with_parts(1.0, hint=())), "A27", W),
    "a hint after the end": (only(version(10, tail=(HINT, "#EXT-X-ENDLIST"))), "A27", E),
    "no update": (then(GOOD, GOOD), "A-timing", W),
}
