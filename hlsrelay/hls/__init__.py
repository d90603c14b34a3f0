"""The HLS protocol as pure functions: parse, advance, window, render. No I/O, no clock, no asyncio."""
