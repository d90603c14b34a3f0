"""What operators write: taken as meant, or refused with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlsrelay.errors import ConfigError
from hlsrelay.fields import checked_id, shown, stream_of
from hlsrelay.ladder import BUILT_IN, fitting, format_ladder, parse_ladder
from hlsrelay.model import Desired, Rung
from hlsrelay.settings import load_settings
from hlsrelay.storage import LocalStorage
from hlsrelay.urls import redacted

GOOD = {"source": "https://example.com/live.m3u8"}


def test_a_source_is_all_that_a_stream_needs() -> None:
    stream = stream_of("news", GOOD)
    assert (stream.desired, stream.ladder, stream.window_s) == (Desired.RUN, (), 60.0)


def test_fields_that_the_relay_wrote_are_no_trouble() -> None:
    assert stream_of("news", {**GOOD, "state": "running", "node": "a", "last_error": ""}).id == "news"


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({}, "set its field 'source'"),
        ({"source": "ftp://x/y"}, "http:// or https://"),
        ({"source": "https:///y"}, "http:// or https://"),
        ({"source": "https://[::1/y"}, "no URL"),
        ({"source": "https://x:port/y"}, "no URL"),
        ({"source": "https://x/a b"}, "%20"),
        ({**GOOD, "desired": "yes"}, "write run or stop"),
        ({**GOOD, "ladder": "721p"}, "write one of 1080p"),
        ({**GOOD, "ladder": "720p,720p"}, "once"),
        ({**GOOD, "ladder": "x:721:100"}, "even number"),
        ({**GOOD, "ladder": "x:720:10"}, "50 to 100000"),
        ({**GOOD, "ladder": "audio:9"}, "16 to 512"),
        ({**GOOD, "ladder": "audio:"}, "leave it out to copy"),
        ({**GOOD, "ladder": "hd:720:1000:x"}, "one of h264, hevc, av1"),
        ({**GOOD, "ladder": "hd:720:1000:"}, "one of h264, hevc, av1"),
        ({**GOOD, "ladder": "hd:720:1000:96:1"}, "audio:kbps such as"),
        ({**GOOD, "ladder": "hd::1000"}, "even number"),
        ({**GOOD, "ladder": "source:720:1000"}, "can't name a rung"),
        ({**GOOD, "ladder": "../x:720:1000"}, "can't name a rung"),
        ({**GOOD, "window": "long"}, "6 to 86400"),
        ({**GOOD, "window": "nan"}, "6 to 86400"),
        ({**GOOD, "headers": "Referer: x"}, "no JSON"),
        ({**GOOD, "headers": '["x"]'}, "JSON object"),
        ({**GOOD, "headers": '{"A": "b\\r\\nEvil: 1"}'}, "can't be sent"),
        ({**GOOD, "headers": '{"A b": "c"}'}, "can't be sent"),
        ({**GOOD, "headers": '{"Host": "x"}'}, "set by the relay itself"),
        ({**GOOD, "proxy": "socks5://x"}, "http:// or https://"),
        ({**GOOD, "backup": "ftp://x"}, "http:// or https://"),
        ({**GOOD, "stall": "0"}, "1 to 3600"),
        ({**GOOD, "variants": "<720"}, "write all, best"),
        ({**GOOD, "keys": "no"}, "proxy or origin"),
        ({**GOOD, "laddr": "720p"}, "'laddr' that nothing reads"),
    ],
)
def test_a_wrong_field_is_refused_with_what_to_write(fields: dict[str, str], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        stream_of("news", fields)


@pytest.mark.parametrize("text", ["", ".", "..", "../x", "/x", ".hidden", "a/b", "a..b", "x" * 65, "ä", "a\n", "-x", "a\0"])
def test_an_id_that_could_leave_its_folder_is_refused_before_it_is_a_path(text: str) -> None:
    """Whoever writes to Redis may write any."""
    with pytest.raises(ConfigError, match="can't be a stream id"):
        checked_id(text)
    with pytest.raises(ConfigError, match="can't be a stream id"):
        stream_of(text, GOOD)
    with pytest.raises(ConfigError, match="can't be a stream id"):
        LocalStorage(Path("live"), text)


@pytest.mark.parametrize("text", ["a", "news-1.hd_x", "0", "x" * 64])
def test_usual_ids_are_taken(text: str) -> None:
    assert checked_id(text) == text


def test_a_ladder_is_sorted_highest_first_and_audio_last() -> None:
    assert [rung.name for rung in parse_ladder("audio, 360p,hd:900:3000,720p")] == ["hd", "720p", "360p", "audio"]


def test_audio_is_copied_where_a_rung_names_no_bitrate_for_it() -> None:
    assert parse_ladder("audio:96, hd:900:3000:160,low:360:600,talk:32") == (
        Rung("hd", 900, 3000, audio_kbps=160),
        Rung("low", 360, 600),
        Rung("audio", None, 0, audio_kbps=96),
        Rung("talk", None, 0, audio_kbps=32),
    )
    assert parse_ladder("audio") == (Rung("audio", None, 0),)


def test_rungs_above_the_source_are_left_out_and_audio_never_is() -> None:
    rungs = parse_ladder("1080p,720p,480p,audio")
    assert [rung.name for rung in fitting(rungs, 720)] == ["720p", "480p", "audio"]
    assert [rung.name for rung in fitting(rungs, None)] == ["audio"]


_RUNGS = st.lists(
    st.one_of(
        st.sampled_from(list(BUILT_IN.values())),
        st.builds(
            Rung,
            st.from_regex(r"[a-z][a-z0-9_-]{0,9}", fullmatch=True),
            st.integers(32, 2160).map(lambda n: n * 2),
            st.integers(50, 100_000),
            audio_kbps=st.just(0) | st.integers(16, 512),
        ),
        st.builds(
            Rung, st.from_regex(r"[a-z][a-z0-9_-]{0,9}|audio", fullmatch=True), st.none(), st.just(0), audio_kbps=st.integers(16, 512)
        ),
    ),
    max_size=8,
    unique_by=lambda rung: rung.name,
)


@given(_RUNGS)
def test_a_ladder_that_is_printed_reads_back_the_same(rungs: list[Rung]) -> None:
    rungs = [
        rung
        for rung in rungs
        if rung.name != "source"
        and not rung.name.startswith(("v", "audio-", "subtitles-", "iframes-"))
        and (rung.name not in BUILT_IN or rung.name == "audio" or rung == BUILT_IN[rung.name])
    ]
    once = parse_ladder(format_ladder(tuple(rungs)))
    assert set(once) == set(rungs)
    assert parse_ladder(format_ladder(once)) == once


def test_what_is_shown_of_a_stream_holds_no_secret() -> None:
    fields = {"source": "https://u:secret@h/x?t=secret", "backup": "https://b/x?t=secret", "proxy": "http://u:secret@p:1", "window": "30"}
    safe = shown({**fields, "headers": '{"Cookie": "secret"}'})
    assert "secret" not in str(safe)
    assert "Cookie" in safe["headers"]
    assert safe["window"] == "30"


def test_urls_are_shown_without_secrets() -> None:
    assert redacted("https://user:pw@host:8443/a/b.m3u8?token=secret&x=1") == "https://host:8443/a/b.m3u8?token=…&x=…"
    assert redacted("http://[::1]:80/x") == "http://[::1]:80/x"


def test_a_setting_that_is_misspelt_is_refused_and_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_PORT", "REDIS_SERVICE_HOST", "PORT", "SOMEBODY_ELSES"):
        monkeypatch.setenv(f"HLSRELAY_{name}", "x")
    load_settings()
    monkeypatch.setenv("HLSRELAY_REDIS", "redis://127.0.0.1:6379/0")
    with pytest.raises(ConfigError, match=r"HLSRELAY_REDIS is no setting: did you mean HLSRELAY_REDIS_URL\?"):
        load_settings()


def test_a_bad_setting_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLSRELAY_ALLOW_NETWORKS", "10.0.0.0/33")
    with pytest.raises(ConfigError, match="HLSRELAY_ALLOW_NETWORKS"):
        load_settings()


@pytest.mark.parametrize(("text", "wanted"), [("yes", True), ("Yes ", True), ("no", False), ("", False)])
def test_on_demand_is_yes_or_no(text: str, wanted: bool) -> None:
    assert stream_of("news", {"source": "https://origin.example/live/index.m3u8", "on_demand": text}).on_demand is wanted


@pytest.mark.parametrize("fields", [{"on_demand": "1"}, {"idle_timeout": "9"}, {"idle_timeout": "soon"}])
def test_on_demand_fields_that_make_no_sense_say_what_to_write(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"write (yes or no|seconds from 10 to 86400)"):
        stream_of("news", {"source": "https://origin.example/live/index.m3u8", **fields})
