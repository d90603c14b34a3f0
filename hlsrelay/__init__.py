"""hlsrelay: a live HLS relay that keeps every byte, every number and every viewer."""

__version__ = "0.1.0"
