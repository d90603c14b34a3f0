"""What is said of a stream at /metrics, and until when."""

from __future__ import annotations

from hlsrelay.metrics import MOST_ENDED, Metrics


def test_a_stream_that_ended_here_has_no_lag_any_more_and_its_counters_stay() -> None:
    metrics = Metrics()
    for name in ("news", "sport"):
        metrics.begun(name)
        metrics.lag_s.labels(name).set(3)
        metrics.last_number.labels(name).set(812)
        metrics.segments.labels(name, "whole").inc(7)
    metrics.ended("news")
    said = metrics.text().decode()
    assert 'hlsrelay_lag_seconds{stream="news"}' not in said
    assert 'hlsrelay_last_sequence{stream="news"}' not in said
    assert 'hlsrelay_segments_total{outcome="whole",stream="news"} 7.0' in said
    assert 'hlsrelay_lag_seconds{stream="sport"} 3.0' in said


def test_streams_that_come_and_go_under_ever_new_ids_are_forgotten_the_oldest_first_and_one_that_came_back_is_not() -> None:
    metrics = Metrics()
    for number in range(2 * MOST_ENDED):
        metrics.begun(f"s{number}")
        metrics.bytes_in.labels(f"s{number}").inc()
        metrics.repairs.labels(f"s{number}", "reset").inc()
        metrics.ended(f"s{number}")
        if number == MOST_ENDED:
            metrics.begun("s5")
    said = metrics.text().decode()
    assert said.count("hlsrelay_source_bytes_total{") == said.count("hlsrelay_repairs_total{") == MOST_ENDED + 1
    assert 'hlsrelay_source_bytes_total{stream="s5"}' in said
    assert f'stream="s{MOST_ENDED - 1}"' not in said
