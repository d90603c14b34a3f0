"""The bench's results for people: a table of text, and a drawing (SVG) for the docs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from bench.figures import BASELINE, Line, Row

COLUMNS = (
    ("streams", 7),
    ("peer", 18),
    ("CPU s/stream-min", 16),
    (f"x {BASELINE}", 8),
    ("PSS MiB/stream", 14),
    ("latency p50", 11),
    ("p95", 8),
    ("identical", 9),
    ("sequence", 8),
    ("requests/segment", 16),
    ("rounds", 6),
)
LEFT = {"peer"}

BAR_HEIGHT, GAP, LABEL_WIDTH, BARS_WIDTH, VALUE_WIDTH = 18, 6, 150, 300, 90
PANEL_TITLE_HEIGHT, MARGIN = 34, 16
OURS, THEIRS = "#1a7f5a", "#8a94a6"


def text_table(lines: Iterable[Line]) -> str:
    """Return the table, a line for each row, remarks below it."""
    out = ["  ".join(name.ljust(width) if name in LEFT else name.rjust(width) for name, width in COLUMNS).rstrip()]
    remarks: list[str] = []
    before: int | None = None
    for line in lines:
        row = line.row
        if before not in (None, row.streams):
            out.append("")
        before = row.streams
        cells = (
            str(row.streams),
            row.peer,
            _number(row.cpu_s_per_stream_minute, ".3f"),
            _number(line.cpu_ratio, ".2f"),
            _number(row.pss_mib_per_stream, ".2f"),
            _number(row.latency_p50_s, ".3f", " s"),
            _number(row.latency_p95_s, ".3f", " s"),
            _number(row.identical, ".0%"),
            {True: "kept", False: "its own", None: "-"}[row.sequence_kept],
            _number(row.requests_per_segment, ".2f"),
            str(line.rounds or "-"),
        )
        padded = zip(cells, COLUMNS, strict=True)
        out.append("  ".join(cell.ljust(width) if name in LEFT else cell.rjust(width) for cell, (name, width) in padded).rstrip())
        remarks += [f"{row.peer}, {row.streams}: {note}" for note in line.notes]
    return "\n".join([*out, "", *remarks])


def markdown_table(lines: Iterable[Line]) -> str:
    """Return the table as the docs have it."""
    out = [
        f"| streams | peer | CPU s per stream-minute | x {BASELINE} | PSS MiB per stream | added latency p50, p95 | identical | sequence "
        "| requests per segment |",
        "|--:|---|--:|--:|--:|--:|--:|---|--:|",
    ]
    for line in lines:
        row = line.row
        latency = "-" if row.latency_p50_s is None else f"{row.latency_p50_s:.2f} s, {row.latency_p95_s or 0:.2f} s"
        cells = (
            str(row.streams),
            row.peer,
            _number(row.cpu_s_per_stream_minute, ".3f"),
            _number(line.cpu_ratio, ".2f"),
            _number(row.pss_mib_per_stream, ".1f"),
            latency,
            _number(row.identical, ".0%"),
            {True: "kept", False: "its own", None: "-"}[row.sequence_kept],
            _number(row.requests_per_segment, ".2f"),
        )
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join([*out, ""])


def shown_count(rows: Sequence[Row]) -> int:
    """Return the number of streams at which most peers were measured, the largest such."""
    measured = [row.streams for row in rows if row.cpu_s_per_stream_minute is not None]
    return max(set(measured), key=lambda streams: (measured.count(streams), streams), default=0)


def drawing(lines: Iterable[Line]) -> str:
    """Return an SVG of three rows of bars: CPU, memory and added latency, shorter is better, at `shown_count` streams."""
    every = [line.row for line in lines]
    streams = shown_count(every)
    rows = [row for row in every if row.streams == streams and row.cpu_s_per_stream_minute is not None]
    panels = (
        ("CPU seconds per stream-minute", [row.cpu_s_per_stream_minute for row in rows], ".3f"),
        ("memory per stream, MiB", [row.pss_mib_per_stream for row in rows], ".1f"),
        ("added latency p50, seconds", [row.latency_p50_s for row in rows], ".2f"),
    )
    panel_height = PANEL_TITLE_HEIGHT + len(rows) * (BAR_HEIGHT + GAP)
    width, height = LABEL_WIDTH + BARS_WIDTH + VALUE_WIDTH + 2 * MARGIN, len(panels) * panel_height + 2 * MARGIN + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>What a relayed stream costs, {streams} streams at once</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    top = MARGIN
    for title, values, spec in panels:
        out.append(f'<text x="{MARGIN}" y="{top + 16}" font-weight="600" fill="#20262e">{escape(title)}</text>')
        longest = max((value for value in values if value is not None), default=0.0) or 1.0
        for index, (row, value) in enumerate(zip(rows, values, strict=True)):
            y = top + PANEL_TITLE_HEIGHT - 6 + index * (BAR_HEIGHT + GAP)
            colour = OURS if row.peer == "hlsrelay" else THEIRS
            length = 0.0 if value is None else value / longest * BARS_WIDTH
            left = MARGIN + LABEL_WIDTH
            out.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end" fill="#20262e">{escape(row.peer)}</text>')
            out.append(f'<rect x="{left}" y="{y}" width="{max(length, 1.0):.1f}" height="{BAR_HEIGHT}" rx="2" fill="{colour}"/>')
            out.append(f'<text x="{left + length + 6:.1f}" y="{y + 13}" fill="#20262e">{_number(value, spec)}</text>')
        top += panel_height
    out.append(f'<text x="{MARGIN}" y="{top + 18}" fill="#5a6472">{streams} streams of 5 Mbps at once; shorter is better</text>')
    return "\n".join([*out, "</svg>", ""])


def _number(value: float | None, spec: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{spec}}{unit}"
