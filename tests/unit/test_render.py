"""What the multivariant playlist says, and which of the source's tags a rung of ours must not repeat."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from hlsrelay.hls.parse import parse
from hlsrelay.hls.render import media_playlist, multivariant_playlist, told_apart
from hlsrelay.hls.window import Progress, slide
from hlsrelay.model import SOURCE, Entry, Kind, MediaFile, Presentation, Traits
from tests.playlists import URL, at
from tests.unit.test_window import POSITION, entry

VIDEO, RUNG, AUDIO = Traits("avc1.64001f", 1280, 720, 30.0), Traits("avc1.64001e", 640, 360, 30.0), Traits("mp4a.40.2")
MASTER = """#EXTM3U
#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="a",NAME="English",LANGUAGE="en",URI="en.m3u8"
#EXT-X-STREAM-INF:BANDWIDTH=1,AUDIO="a"{}
v.m3u8
"""


def shown(entries: list[Entry], name: str = SOURCE, kind: Kind = Kind.VARIANT) -> Progress:
    progress = Progress(POSITION, 4, name, kind)
    for one in entries:
        progress = slide(progress, one, replace(POSITION, last_number=one.number), 24.0, at(0))
    return progress


def of(traits: Traits, name: str = SOURCE, rungs: tuple[str, ...] = ()) -> Entry:
    files = {name: traits, **dict.fromkeys(rungs, RUNG)}
    return Entry(0, 4.0, False, at(0), {name: MediaFile("0.ts", 100, traits=one) for name, one in files.items()}, rungs)


def codecs(audio: Traits, video: Traits = VIDEO, said: str = "") -> list[str]:
    """CODECS of the variant and of the rung made from it, empty where there are none."""
    found = parse(MASTER.format(said).encode(), URL)
    assert isinstance(found, Presentation)
    published = {SOURCE: shown([of(video, rungs=("360p",))]), "audio-en": shown([of(audio, "audio-en")], "audio-en", Kind.AUDIO)}
    lines = [line for line in multivariant_playlist(found, published).splitlines() if line.startswith("#EXT-X-STREAM-INF")]
    return [(re.findall('CODECS="([^"]*)"', line) or [""])[0] for line in lines]


def test_codecs_name_those_of_the_renditions_that_play_along() -> None:
    assert codecs(AUDIO) == ["avc1.64001f,mp4a.40.2", "avc1.64001e,mp4a.40.2"]


def test_codecs_are_left_out_where_not_all_of_them_are_known() -> None:
    assert codecs(Traits()) == ["", ""]
    assert codecs(AUDIO, Traits()) == ["", "avc1.64001e,mp4a.40.2"]


def test_the_peak_of_segments_that_are_shorter_than_half_a_target_duration_is_their_average() -> None:
    lines = MASTER.format("") + '#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=1,RESOLUTION=1280x720,URI="i.m3u8"\n'
    found = parse(lines.replace("BANDWIDTH=1,RES", "RES").encode(), URL)
    assert isinstance(found, Presentation)
    kinds = {SOURCE: Kind.VARIANT, "audio-en": Kind.AUDIO, "iframes-720p": Kind.I_FRAMES}
    published = {name: shown([replace(of(VIDEO, name), duration_s=1.0)], name, kind) for name, kind in kinds.items()}
    text = multivariant_playlist(found, published)
    assert "#EXT-X-STREAM-INF:BANDWIDTH=1600,AVERAGE-BANDWIDTH=1600," in text
    assert "#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=800," in text


def test_what_the_source_says_of_its_codecs_stays() -> None:
    assert codecs(Traits(), said=',CODECS="avc1.4d401e,ac-3"') == ["avc1.4d401e,ac-3", "avc1.64001e,ac-3"]


def test_a_segment_that_cannot_be_read_takes_nothing_back() -> None:
    unread = replace(of(Traits()), number=1)
    assert shown([of(VIDEO), unread]).renditions[0].traits == VIDEO


def test_codecs_name_what_is_listed_still_after_the_format_changed() -> None:
    """[A 9.1]: of the renditions that play along too. The picture's size is the newest one's."""
    found = parse(MASTER.format("").encode(), URL)
    assert isinstance(found, Presentation)
    hevc, surround = Traits("hvc1.1.6.L93.B0", 1920, 1080, 50.0), Traits("ec-3")

    def line(count: int) -> str:
        """After three entries of the old formats and *count* of the new ones."""
        video = [replace(of(VIDEO if n < 3 else hevc), number=n) for n in range(3 + count)]
        audio = [replace(of(AUDIO if n < 3 else surround, "audio-en"), number=n) for n in range(3 + count)]
        published = {SOURCE: shown(video), "audio-en": shown(audio, "audio-en", Kind.AUDIO)}
        return next(line for line in multivariant_playlist(found, published).splitlines() if line.startswith("#EXT-X-STREAM-INF"))

    assert 'CODECS="hvc1.1.6.L93.B0,avc1.64001f,ec-3,mp4a.40.2",RESOLUTION=1920x1080,FRAME-RATE=50.000' in line(2)
    assert 'CODECS="hvc1.1.6.L93.B0,ec-3",RESOLUTION=1920x1080' in line(6)


def sized(sizes: list[int], traits: Traits = VIDEO, last: Traits | None = None) -> Progress:
    last_traits = last or traits
    entries = [replace(of(traits if n < len(sizes) - 1 else last_traits), number=n) for n in range(len(sizes))]
    files = [{SOURCE: replace(one.files[SOURCE], size_bytes=size)} for one, size in zip(entries, sizes, strict=True)]
    return shown([replace(one, files=each) for one, each in zip(entries, files, strict=True)])


def test_the_multivariant_playlist_is_printed_anew_where_it_would_read_differently() -> None:
    """Segment after segment, the last of them smaller: the peak stays."""
    before = sized([1_000_000] * 8)
    assert told_apart(before) == told_apart(sized([1_000_000] * 9))
    assert told_apart(before) == told_apart(sized([1_000_000] * 8 + [970_000])), "the average moves by a third of a hundredth"
    assert told_apart(before) != told_apart(sized([1_000_000] * 8 + [700_000])), "by three hundredths"
    assert told_apart(before) != told_apart(sized([1_000_000] * 8 + [1_050_000])), "the peak moves"
    assert told_apart(before) != told_apart(sized([1_000_000] * 9, last=replace(VIDEO, width=640, height=360)))
    mixed = sized([1_000_000] * 8, last=replace(VIDEO, codecs="hvc1.1.6.L93.B0"))
    longer = sized([1_000_000] * 14, VIDEO, replace(VIDEO, codecs="hvc1.1.6.L93.B0"))
    assert told_apart(mixed) != told_apart(longer), "what else is listed leaves one day"


def test_a_variant_names_no_group_of_another_type_that_has_the_name() -> None:
    subtitles = MASTER.replace("TYPE=AUDIO", "TYPE=SUBTITLES").format(',SUBTITLES="a"')
    found = parse(subtitles.encode(), URL)
    assert isinstance(found, Presentation)
    names = [track.name for track in found.tracks]
    published = {name: shown([of(VIDEO, name)], name, Kind.VARIANT if name == SOURCE else Kind.SUBTITLES) for name in names}
    text = multivariant_playlist(found, published)
    assert 'SUBTITLES="a"' in text
    assert 'AUDIO="a"' not in text


@pytest.mark.parametrize(
    ("lines", "version"),
    [
        ("", 1),
        ("#EXT-X-INDEPENDENT-SEGMENTS\n", 1),
        ('#EXT-X-SESSION-KEY:METHOD=SAMPLE-AES,URI="skd://k",KEYFORMAT="x"\n', 5),
        ('#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID="c",NAME="n",INSTREAM-ID="SERVICE1"\n', 7),
        ('#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID="c",NAME="n",INSTREAM-ID="CC1"\n', 1),
    ],
)
def test_the_version_of_a_multivariant_playlist_is_the_lowest_that_its_tags_need(lines: str, version: int) -> None:
    found = parse((MASTER.format("") + lines).encode(), URL)
    assert isinstance(found, Presentation)
    published = {SOURCE: shown([of(VIDEO)]), "audio-en": shown([of(AUDIO, "audio-en")], "audio-en", Kind.AUDIO)}
    assert f"#EXTM3U\n#EXT-X-VERSION:{version}\n" in multivariant_playlist(found, published)


def test_what_is_true_of_the_sources_bytes_only_is_not_said_of_a_rungs() -> None:
    progress = shown([replace(entry(n, "360p"), tags=("#EXT-X-BITRATE:900", "#EXT-X-CUE-OUT:4")) for n in range(3)])
    assert media_playlist(progress, SOURCE).count("#EXT-X-BITRATE:900") == 3
    assert "#EXT-X-BITRATE" not in media_playlist(progress, "360p")
    assert media_playlist(progress, "360p").count("#EXT-X-CUE-OUT:4") == 3
