"""What the verbs that stay share."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from hlsrelay.commands import _unless


def test_who_is_told_to_leave_waits_for_no_claim() -> None:
    async def main() -> None:
        leaving, cancelled = asyncio.Event(), asyncio.Event()

        async def never() -> int:
            try:
                found: int = await asyncio.get_running_loop().create_future()
                return found
            finally:
                cancelled.set()

        waiting = asyncio.create_task(_unless(leaving, never()))
        await asyncio.sleep(0)
        leaving.set()
        assert await waiting is None
        assert cancelled.is_set()

    asyncio.run(main())


def test_what_comes_before_we_are_told_to_leave_is_what_was_asked_for() -> None:
    async def given() -> int:
        return 5

    assert asyncio.run(_unless(asyncio.Event(), given())) == 5


def test_as_many_files_may_be_open_as_the_machine_allows() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 2000))
from hlsrelay.commands import _may_open_many_files
_may_open_many_files()
print(resource.getrlimit(resource.RLIMIT_NOFILE))
resource.setrlimit(resource.RLIMIT_NOFILE, (1500, 2000))
_may_open_many_files()
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "(2000, 2000)\n" * 2
