"""What Prometheus reads at /metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector

LOOP_LAGS_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
MOST_ENDED = 1000
"""A node that relays another stream every hour, each under an id of its own, must not grow for ever."""


class Waits(Collector):
    """How often something took how long: a Histogram that costs nothing while nobody reads it."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._counts = [0] * (len(LOOP_LAGS_S) + 1)
        self._sum_s = 0.0

    def observe(self, waited_s: float) -> None:
        """Count one more."""
        self._counts[bisect_left(LOOP_LAGS_S, waited_s)] += 1
        self._sum_s += waited_s

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Return what Prometheus reads: each bound with what took up to so long."""
        bounds = [*map(str, LOOP_LAGS_S), "+Inf"]
        yield HistogramMetricFamily(
            self._name, self._text, buckets=list(zip(bounds, accumulate(self._counts), strict=True)), sum_value=self._sum_s
        )


class Metrics:
    """One per process, with a registry of its own so that tests don't share counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._ended: OrderedDict[str, None] = OrderedDict()
        stream = ("stream",)
        self.loads = self._counter("hlsrelay_playlist_loads_total", "Loads of a source's playlist", ("stream", "outcome"))
        self.segments = self._counter("hlsrelay_segments_total", "Numbers published, by what stands under them", ("stream", "outcome"))
        self.bytes_in = self._counter("hlsrelay_source_bytes_total", "Segment bytes taken from the source", stream)
        self.rung_gaps = self._counter(
            "hlsrelay_rung_gaps_total", "Segments that a rung has no file for, and why", ("stream", "rung", "reason")
        )
        self.ladder_jobs = self._counter(
            "hlsrelay_ladder_jobs_total", "Ladder jobs of an installation with a pool, by where their pictures were made", ("where",)
        )
        self.pool_slots = Gauge("hlsrelay_pool_slots", "Jobs that the pool does at once; 0 while it is away", registry=self.registry)
        self.pool_jobs = Gauge("hlsrelay_pool_jobs", "Jobs of ours that are with the pool", registry=self.registry)
        self.repairs = self._counter("hlsrelay_repairs_total", "What the relay made right, by name", ("stream", "repair"))
        self.preloads = self._counter(
            "hlsrelay_preloads_total",
            "Files pulled through a cache before they are listed, and what came of it",
            ("stream", "base", "outcome"),
        )
        self.lag_s = Gauge(
            "hlsrelay_lag_seconds", "From the load that listed the newest segment to our listing it", stream, registry=self.registry
        )
        self.last_number = Gauge("hlsrelay_last_sequence", "Newest published media sequence number", stream, registry=self.registry)
        self.ladder_paused = Gauge(
            "hlsrelay_ladder_paused", "1 while a ladder is not tried, because it failed again and again", stream, registry=self.registry
        )
        self.children = Gauge("hlsrelay_children", "Child processes running", registry=self.registry)
        self.memory_pressure = Gauge("hlsrelay_memory_pressure", "1 while memory is short: no ladder job starts", registry=self.registry)
        self.load = Gauge("hlsrelay_load", "What of its capacity a worker has taken on", registry=self.registry)
        self.load_wanted = Gauge(
            "hlsrelay_load_wanted", "What all streams that are to run take, wherever they do, as a worker sees it", registry=self.registry
        )
        self.loop_lag_s = Waits(
            "hlsrelay_loop_lag_seconds", "How long what was due had to wait, looked at five times a second: one thread serves all streams"
        )
        self.registry.register(self.loop_lag_s)
        self.registry_up = Gauge("hlsrelay_redis_up", "1 while Redis answers", registry=self.registry)

    def begun(self, stream_id: str) -> None:
        """A stream is relayed here."""
        self._ended.pop(stream_id, None)

    def ended(self, stream_id: str) -> None:
        """A stream is no longer relayed here: what it was like last is not said any more, what was counted only of the last MOST_ENDED."""
        for gauge in (self.lag_s, self.last_number, self.ladder_paused):
            gauge.remove_by_labels({"stream": stream_id})
        self._ended[stream_id] = None
        while len(self._ended) > MOST_ENDED:
            gone, _ = self._ended.popitem(last=False)
            for counter in (self.loads, self.segments, self.bytes_in, self.rung_gaps, self.repairs, self.preloads):
                counter.remove_by_labels({"stream": gone})

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)
