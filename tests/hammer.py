"""Clients that connect, ask once and hang up, as fast as they can: each connection that gets no answer is counted."""

from __future__ import annotations

import socket
import threading
from collections import Counter

ASKED = b"GET /healthz HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n"
PATIENCE_S = 20.0


class Hammer:
    """Hammers at a port of loopback; *pauses_s*: for each client, from connecting to asking, as of one that is far away."""

    def __init__(self, port: int, pauses_s: tuple[float, ...] = (0.0, 0.0, 0.0, 0.02)) -> None:
        self.answers = 0
        self.failures: Counter[str] = Counter()
        self._port = port
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask_again_and_again, args=(pause_s,), daemon=True) for pause_s in pauses_s]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Wait for the last answers. Blocks: a loop that gives them has to go on meanwhile."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Hammer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _ask_again_and_again(self, pause_s: float) -> None:
        while not self._over.is_set():
            try:
                fault = "" if self._asked(pause_s).startswith(b"HTTP/1.1 200 ") else "closed without an answer"
            except OSError as error:
                fault = type(error).__name__
            with self._lock:
                self.answers += not fault
                self.failures += Counter([fault] if fault else [])

    def _asked(self, pause_s: float) -> bytes:
        with socket.create_connection(("127.0.0.1", self._port), PATIENCE_S) as one:
            if pause_s:
                threading.Event().wait(pause_s)
            one.sendall(ASKED)
            return b"".join(iter(lambda: one.recv(65536), b""))
