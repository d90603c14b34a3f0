"""How children end, and that each end is told: hung ones, greedy ones, shed ones, and those whose caller is cancelled at any step."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from hlsrelay import proc, processes, progress
from hlsrelay.errors import ChildError
from hlsrelay.processes import MEMORY, OVERLOADED, Children, Limits, Stdout
from hlsrelay.progress import Progress
from tests.integration import test_processes
from tests.integration.test_processes import IGNORES_TERM, Body, first_line, python
from tests.waiting import comes_true

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="children are watched through /proc and pidfd here: Linux only")

run = test_processes.run

REPORT = "print('frame={0}\\nout_time_us={0}0000\\ntotal_size=9\\nspeed=2x\\nprogress=continue'.format(n), flush=True)"
MOST_STEPS = 60


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of the watch takes a tenth: what it decides is tested with its own figures in tests/unit/test_progress.py."""
    monkeypatch.setattr(processes, "PERIOD_S", 0.05)
    monkeypatch.setattr(progress, "PERIOD_S", 0.05)
    monkeypatch.setattr(progress, "HUNG_AFTER_S", 0.5)


def ends(lines: list[Any]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == "child.ended"]


def told(body: Callable[[], None]) -> dict[str, Any]:
    """Return the one event that *body*'s child ended with."""
    with capture_logs() as lines:
        body()
    [end] = ends(list(lines))
    return end


GETS_NOWHERE = {
    "is stopped by SIGSTOP": f"import os, signal\nn = 7\n{REPORT}\nos.kill(os.getpid(), signal.SIGSTOP)",
    "waits for what never comes": f"import threading\nn = 7\n{REPORT}\nthreading.Event().wait()",
    "says the same again and again": f"import time\nn = 7\nwhile True:\n    {REPORT}; time.sleep(0.1)",
    "says nothing at all": "import signal; signal.pause()",
    "is blocked on a full pipe": "import os\na, b = os.pipe()\nwhile True: os.write(b, b'x' * 4096)",
    "waits and ignores TERM": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()",
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", GETS_NOWHERE)
def test_a_child_that_gets_nowhere_is_stopped_and_its_end_says_why(
    how: str,
    run: Callable[[Body], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "TERM_PATIENCE_S", 0.3)

    async def body(children: Children) -> None:
        with pytest.raises(ChildError, match="no progress for 5 s") as caught:
            await children.run(python(GETS_NOWHERE[how]), purpose=how, deadline_s=60, watched=True)
        assert caught.value.ended == "hung"

    end = told(lambda: run(body))
    assert (end["purpose"], end["reason"], end["log_level"]) == (how, "hung", "warning")
    assert end["signal"] in ("SIGTERM", "SIGKILL")


@pytest.mark.usefixtures("impatient")
def test_a_child_that_works_without_a_word_is_not_hung(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        code = "import time\nwhile time.thread_time() < 0.8: pass"
        assert (await children.run(python(code), purpose="busy", deadline_s=60, watched=True)).reason == "done"

    run(body)


def test_reports_are_kept_and_a_flood_of_them_never_blocks(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        code = f"for n in range(30_000): {REPORT}"
        async with children.spawn(python(code), purpose="talks", stdout=Stdout.PROGRESS) as child:
            assert child.progress is None
            assert (await child.wait()).exit_code == 0
            assert child.progress == Progress(29_999, 299.99, 9, 2.0)

    run(body)


def test_who_could_run_is_told_from_who_waits(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        both = "import sys, threading\nprint('ready', flush=True)\nwhile {}: pass\nthreading.Event().wait()"
        for busy in (True, False):
            async with children.spawn(python(both.format(busy)), purpose="test", stdout=Stdout.LINES) as child:
                await first_line(child)
                await comes_true(lambda pid=child.pid, busy=busy: proc.runnable(pid) is busy)  # type: ignore[misc]

    run(body)


def test_an_operator_sees_what_a_child_is_for_what_it_uses_and_how_far_it_is(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        code = f"n = 7\n{REPORT}\nwhile True: pass"
        argv = (*python(code), "https://user:secret@example.com/live.m3u8?token=hunter2")
        async with children.spawn(argv, purpose="encode news 7", stdout=Stdout.PROGRESS) as child:
            await comes_true(lambda: child.progress is not None and (child.status("a").cpu_s or 0) >= 0.05)
            seen = child.status("a")
        assert (seen.node, seen.pid, seen.purpose, seen.frame, seen.out_time_s, seen.speed) == (
            "a",
            child.pid,
            "encode news 7",
            7,
            0.07,
            2.0,
        )
        assert seen.rss_bytes is not None
        assert seen.rss_bytes > 1 << 20
        assert seen.argv[:-1] == argv[:-1]
        assert seen.argv[-1] == "https://example.com/live.m3u8?token=…"
        assert child.status("a").rss_bytes is None  # gone

    run(body)


@pytest.mark.parametrize(
    ("program", "level", "expected"),
    [
        ("pass", "debug", {"reason": "done", "exit_code": 0}),
        ("import sys; sys.exit(3)", "warning", {"reason": "done", "exit_code": 3}),
        ("import os; os.abort()", "warning", {"reason": "done", "signal": "SIGABRT"}),
    ],
)
def test_the_end_of_a_child_that_ends_by_itself_is_one_event(
    program: str,
    level: str,
    expected: dict[str, Any],
    run: Callable[[Body], None],
) -> None:
    async def body(children: Children) -> None:
        await children.run(python(program), purpose="test", deadline_s=60)

    end = told(lambda: run(body))
    assert end["log_level"] == level
    assert end.items() >= expected.items()
    assert end["wall_s"] > 0
    assert end["cpu_s"] > 0


def test_a_child_that_was_done_before_we_were_on_a_processor_again_took_its_time(
    run: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = subprocess.Popen

    def starts(*words: Any, **wishes: Any) -> subprocess.Popen[bytes]:
        popen = started(*words, **wishes)
        os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
        return popen

    async def body(children: Children) -> None:
        monkeypatch.setattr(subprocess, "Popen", starts)
        await children.run(python("import time; time.sleep(0.05)"), purpose="test", deadline_s=60)

    assert told(lambda: run(body))["wall_s"] >= 0.05


async def _late(children: Children) -> None:
    with pytest.raises(ChildError, match="not done after"):
        await children.run(["sleep", "600"], purpose="test", deadline_s=0.2)


async def _cancelled(children: Children) -> None:
    task = asyncio.create_task(children.run(["sleep", "600"], purpose="test", deadline_s=600))
    await comes_true(lambda: bool(children.running()))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _left(children: Children) -> None:
    async with children.spawn(["sleep", "600"], purpose="test"):
        pass


async def _failed(children: Children) -> None:
    with pytest.raises(ZeroDivisionError):
        async with children.spawn(["sleep", "600"], purpose="test"):
            1 / 0  # noqa: B018


async def _closed(children: Children) -> None:
    task = asyncio.create_task(children.run(["sleep", "600"], purpose="test", deadline_s=600))
    await comes_true(lambda: bool(children.running()))
    await children.aclose()
    with pytest.raises(ChildError, match="stopped: shutdown"):
        await task


async def _given_up(children: Children, reason: str) -> None:
    task = asyncio.create_task(children.run(["sleep", "600"], purpose="test", deadline_s=600))
    await comes_true(lambda: bool(children.running()))
    task.cancel(reason)
    with pytest.raises(asyncio.CancelledError):
        await task


async def _shed(children: Children) -> None:
    await _given_up(children, MEMORY)


async def _overdue(children: Children) -> None:
    await _given_up(children, OVERLOADED)


@pytest.mark.parametrize(
    ("body", "reason", "level"),
    [
        (_late, "deadline", "warning"),
        (_cancelled, "cancelled", "info"),
        (_left, "no longer wanted", "info"),
        (_failed, "no longer wanted", "info"),
        (_closed, "shutdown", "info"),
        (_shed, "memory", "warning"),
        (_overdue, "overload", "warning"),
    ],
)
def test_the_end_of_a_child_that_was_stopped_is_one_event_with_the_reason(
    body: Body,
    reason: str,
    level: str,
    run: Callable[[Body], None],
) -> None:
    end = told(lambda: run(body))
    assert (end["reason"], end["log_level"], end["signal"]) == (reason, level, "SIGTERM")


def test_the_end_of_a_child_that_was_stopped_is_told_also_where_it_ends_well(run: Callable[[Body], None]) -> None:
    code = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nprint('ready', flush=True)\nsignal.pause()"

    async def body(children: Children) -> None:
        async with children.spawn(python(code), purpose="test", stdout=Stdout.LINES) as child:
            assert await anext(child.lines()) == "ready"

    end = told(lambda: run(body))
    assert (end["reason"], end["log_level"], end["exit_code"]) == ("no longer wanted", "info", 0)


def test_a_child_that_fills_the_disk_is_stopped_by_its_limit(run: Callable[[Body], None], tmp_path: Path) -> None:
    async def body(children: Children) -> None:
        code = "import sys\nwith open(sys.argv[1], 'wb', 0) as file:\n    while True: file.write(b'x' * 65536)"
        limits = Limits(file_size_bytes=1 << 20)
        finished = await children.run(python(code, str(tmp_path / "huge")), purpose="greedy", deadline_s=60, limits=limits)
        assert finished.exit_code in (1, -signal.SIGXFSZ)  # Python ignores the signal and is told EFBIG
        assert (tmp_path / "huge").stat().st_size == 1 << 20

    if processes._program("prlimit") is None:
        pytest.skip("prlimit is not installed: children are not limited")
    run(body)


class CancelledAt:
    """Awaits *work* and cancels the task around it at its *step*-th suspension."""

    def __init__(self, work: Coroutine[Any, Any, Any], step: int) -> None:
        self.work, self.step, self.reached = work, step, False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.work.__await__()
        value, error = None, None
        for count in range(1, 1_000_000):
            try:
                waits_for = steps.throw(error) if error else steps.send(value)
            except StopIteration as done:
                return done.value
            if count == self.step:
                self.reached = True
                task = asyncio.current_task()
                assert task
                asyncio.get_running_loop().call_soon(task.cancel)
            value, error = None, None
            try:
                value = yield waits_for
            except BaseException as thrown:
                error = thrown
        raise AssertionError("it never ends")


def test_a_caller_can_be_cancelled_at_any_step_and_its_child_is_gone(
    run: Callable[[Body], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "TERM_PATIENCE_S", 0.1)

    async def body(children: Children) -> None:
        async def outer(work: CancelledAt) -> None:
            await work

        async def inner() -> None:
            async with children.spawn(python(IGNORES_TERM), purpose="test", stdout=Stdout.LINES) as child:
                await first_line(child)
                await child.stop("test")
            await children.run(["true"], purpose="test", deadline_s=60, watched=True)

        for step in range(1, MOST_STEPS):
            work = CancelledAt(inner(), step)
            [result] = await asyncio.gather(asyncio.create_task(outer(work)), return_exceptions=True)
            assert children.running() == ()
            if not work.reached:
                assert result is None
                assert step > 3
                return
            assert isinstance(result, asyncio.CancelledError)
        raise AssertionError("it never came to its end")

    run(body)
