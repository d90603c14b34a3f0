"""What an encoder still reads stays, whoever removes it meanwhile: through the whole relay, in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from hlsrelay.clock import Nudges
from hlsrelay.desk import Tools
from hlsrelay.encoder import Encoded
from hlsrelay.errors import EncodeError
from hlsrelay.media.probe import MediaInfo
from hlsrelay.recipe import EncodeJob
from hlsrelay.relay import relay
from hlsrelay.storage import LocalStorage
from hlsrelay.upstream import Upstream
from tests.integration.relaying import NoEncoder, Operator
from tests.integration.test_vitals import LADDER, media
from tests.origin import Origin
from tests.playlists import stream
from tests.virtual import VirtualClock, elapse, run_virtually

TAKES_S = 3.0


class SlowReader(NoEncoder):
    """An encoder that opens its files late, while somebody sweeps the whole folder."""

    def __init__(self, storage: LocalStorage, outcome: Mapping[str, MediaInfo] | Exception) -> None:
        self._storage = storage
        self._outcome = outcome
        self.read: list[Path] = []

    async def encode(self, job: EncodeJob) -> Encoded:
        inputs = [path for path in (job.source, job.previous) if path is not None and path.exists()]
        self._storage.remove(path.relative_to(self._storage.folder).as_posix() for path in inputs)
        self._storage.sweep(known=set())
        await elapse(TAKES_S)
        for path in inputs:
            assert path.read_bytes()
        self.read += inputs
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return Encoded(self._outcome, {})


async def relayed(folder: Path, outcome: Mapping[str, MediaInfo] | Exception) -> list[Path]:
    """Relay eight segments and leave, while jobs are under way; return what was read. Nothing of it may be there any more."""
    transport = Origin(content=media).transport()
    with LocalStorage(folder, "news") as storage:
        encoder = SlowReader(storage, outcome)
        async with Upstream(transport=transport) as upstream:
            tools = Tools(upstream, storage, encoder, Operator(replace(stream(), ladder=LADDER)), VirtualClock(), Nudges())
            made = 0
            async with aclosing(relay(tools)) as ticks:
                async for tick in ticks:
                    made += tick.made is not None
                    if made == 8:
                        break
        assert not [path for path in encoder.read if path.exists()]
        return encoder.read


@pytest.mark.parametrize("outcome", [{}, EncodeError("no")])
def test_a_file_that_a_job_reads_goes_only_when_the_job_is_done_has_failed_or_is_cancelled(
    outcome: Mapping[str, MediaInfo] | Exception, tmp_path: Path
) -> None:
    assert len(run_virtually(relayed(tmp_path, outcome))) > 5
