"""Real children, really killed: no sleeps, each test waits for what it wants to see."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from hlsrelay import orphans, processes
from hlsrelay.errors import ChildError
from hlsrelay.orphans import TAG, incarnation, sweep
from hlsrelay.processes import Child, Children, Finished, Limits, Stdout
from tests.waiting import turns

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="children are watched through /proc and pidfd here: Linux only")

Body = Callable[[Children], Awaitable[None]]
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
IGNORES_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-c", code, *arguments]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Body], None]]:
    """Run a body on each kind of loop; afterwards there is no child, no zombie and no descriptor more than before."""

    def run(body: Body) -> None:
        async def whole() -> None:
            children = Children()
            before = os.listdir("/proc/self/fd")  # here: a loop has descriptors of its own
            try:
                await body(children)
                assert os.listdir("/proc/self/fd") == before
                assert children.running() == ()
            finally:
                await children.aclose()

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(whole())

    yield run
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


async def first_line(child: Child) -> str:
    async for line in child.lines():
        return line
    raise AssertionError(child.stderr_tail)


def gone_within(pid: int, seconds: float = 10) -> bool:
    """Return whether *pid* is gone (or a zombie of somebody else's) within *seconds*."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


def test_a_child_that_ends_tells_its_exit_code_its_last_words_and_what_it_cost(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        finished = await children.run(python("import sys; sys.stderr.write('so long'); sys.exit(7)"), purpose="test", deadline_s=30)
        assert (finished.exit_code, finished.stderr_tail) == (7, "so long")
        assert finished.cpu_s is not None
        assert 0 < finished.cpu_s < 30
        assert 0 < finished.wall_s < 30

    run(body)


def test_a_flood_of_stderr_neither_blocks_the_child_nor_fills_memory(run: Callable[[Body], None]) -> None:
    code = "import sys\nfor _ in range(50): sys.stderr.write('x' * 1_000_000)\nsys.stderr.write('the end')"

    async def body(children: Children) -> None:
        finished = await children.run(python(code), purpose="flood", deadline_s=60)
        assert finished.exit_code == 0
        assert finished.stderr_tail.endswith("xthe end")
        assert len(finished.stderr_tail) == 4096

    run(body)


def test_a_child_that_ignores_term_is_gone_within_five_seconds(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        async with children.spawn(python(IGNORES_TERM), purpose="deaf", stdout=Stdout.LINES) as child:
            assert await first_line(child) == "ready"
            begun = asyncio.get_running_loop().time()
            finished = await child.stop("test")
            assert asyncio.get_running_loop().time() - begun < 5
            assert finished is not None
            assert finished.exit_code == -signal.SIGKILL

    run(body)


def test_a_child_that_heeds_term_ends_in_its_own_way(run: Callable[[Body], None]) -> None:
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); print('ready', flush=True); signal.pause()"

    async def body(children: Children) -> None:
        async with children.spawn(python(code), purpose="polite", stdout=Stdout.LINES) as child:
            await first_line(child)
            finished = await child.stop("test")
            assert finished is not None
            assert finished.exit_code == 3
            assert child.finished == finished == await child.wait() == await child.stop("again")

    run(body)


def test_what_a_child_forked_goes_with_it(run: Callable[[Body], None]) -> None:
    and_ends = "import os, subprocess\nprint(subprocess.Popen(['sleep', '600']).pid, flush=True); os._exit(0)"

    and_stays = "import signal, subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True); signal.pause()"

    async def body(children: Children) -> None:
        for program in (and_ends, and_stays):
            async with children.spawn(python(program), purpose="forks", stdout=Stdout.LINES) as child:
                grandchild = int(await first_line(child))
                await child.stop("test")
            assert gone_within(grandchild)

    run(body)


def test_a_stopped_child_can_be_stopped(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        async with children.spawn(["sleep", "600"], purpose="frozen") as child:
            os.kill(child.pid, signal.SIGSTOP)
            finished = await child.stop("test")
            assert finished is not None
            assert finished.exit_code in (-signal.SIGTERM, -signal.SIGKILL)

    run(body)


def test_a_child_blocked_on_a_full_pipe_is_freed_by_closing_our_end(run: Callable[[Body], None]) -> None:
    code = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: print('y' * 1000, flush=True)"

    async def body(children: Children) -> None:
        async with children.spawn(python(code), purpose="blocked", stdout=Stdout.LINES) as child:
            assert await first_line(child) == "y" * 1000
            begun = asyncio.get_running_loop().time()
            finished = await child.stop("test")
            assert finished is not None
            assert finished.exit_code in (1, 120)  # Python's own answer to a broken pipe, not a signal
            assert asyncio.get_running_loop().time() - begun < processes.TERM_PATIENCE_S

    run(body)


def test_lines_come_in_order_and_all_of_them(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        code = "import sys\nfor n in range(20_000): print(n)\nsys.stdout.write('no line end')"
        async with children.spawn(python(code), purpose="lines", stdout=Stdout.LINES) as child:
            lines = [line async for line in child.lines()]
            assert lines == [str(n) for n in range(20_000)] + ["no line end"]
            assert (await child.wait()).exit_code == 0

    run(body)


def test_a_child_past_its_deadline_is_an_error_with_its_last_words(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        code = "import signal, sys; sys.stderr.write('still at it'); sys.stderr.flush(); signal.pause()"
        with pytest.raises(ChildError, match=r"late: not done after 1.5 s") as caught:
            await children.run(python(code), purpose="late", deadline_s=1.5)
        assert caught.value.stderr_tail == "still at it"
        assert caught.value.child_exit_code == -signal.SIGTERM
        assert caught.value.argv[0] == sys.executable

    run(body)


def test_a_cancelled_run_ends_only_after_its_child(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        started = asyncio.Event()

        async def one() -> None:
            async with children.spawn(python(IGNORES_TERM), purpose="cancelled", stdout=Stdout.LINES) as child:
                await first_line(child)
                started.set()
                await child.wait()

        task = asyncio.create_task(one())
        await started.wait()
        pid = children.running()[0].pid
        task.cancel()
        await turns()
        task.cancel()  # the impatient way
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gone_within(pid, 0)

    run(body)


def test_a_timeout_around_a_run_is_a_timeout(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await children.run(["sleep", "600"], purpose="test", deadline_s=600)

    run(body)


def test_shutdown_stops_all_at_once_and_starts_no_more(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        async def one() -> Finished:
            async with children.spawn(python(IGNORES_TERM), purpose="many", stdout=Stdout.LINES) as child:
                await first_line(child)
                ready.release()
                return await child.wait()

        ready = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(one()) for _ in range(4)]
        for _ in tasks:
            await ready.acquire()
        assert len(children.running()) == 4
        begun = asyncio.get_running_loop().time()
        await children.aclose()
        assert asyncio.get_running_loop().time() - begun < 5
        assert {finished.exit_code for finished in await asyncio.gather(*tasks)} == {-signal.SIGKILL}
        with pytest.raises(ChildError, match="shutting down"):
            await children.run(["true"], purpose="late", deadline_s=1)

    run(body)


def test_a_child_that_survives_even_kill_is_counted_and_reaped_if_it_ends_after_all(
    run: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(children: Children) -> None:
        async with children.spawn(["sleep", "600"], purpose="undead") as child:
            with monkeypatch.context() as patch:
                patch.setattr(processes, "TERM_PATIENCE_S", 0.01)
                patch.setattr(processes, "KILL_PATIENCE_S", 0.01)
                patch.setattr(os, "killpg", lambda pid, number: None)  # as for a process that waits for a dead disk
                assert await child.stop("test") is None
            assert children.quarantined == 1
            assert children.running() == (child,)
            os.kill(child.pid, signal.SIGKILL)
            assert (await child.wait()).exit_code == -signal.SIGKILL

    run(body)


def test_a_program_that_does_not_exist_is_an_error_in_our_words(run: Callable[[Body], None]) -> None:
    async def body(children: Children) -> None:
        with pytest.raises(ChildError, match="test: no program /no/such/program"):
            await children.run(["/no/such/program"], purpose="test", deadline_s=1)
        with pytest.raises(ChildError, match="can't be started"):
            await children.run(["true"], purpose="test", deadline_s=1, cwd=Path("/no/such/folder"))

    run(body)


def test_limits_hold(run: Callable[[Body], None], tmp_path: Path) -> None:
    async def body(children: Children) -> None:
        limits = Limits(cpu_s=1, file_size_bytes=1000, open_files=32, niceness=7, address_space_bytes=1 << 30)
        code = """
import os, resource, signal, sys
print(os.nice(0), [resource.getrlimit(name) for name in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE,
    resource.RLIMIT_AS, resource.RLIMIT_CORE)], file=sys.stderr, flush=True)
while True: pass"""
        finished = await children.run(python(code), purpose="greedy", deadline_s=30, limits=limits)
        assert finished.exit_code == -signal.SIGXCPU
        niceness = min(19, os.nice(0) + 7)
        assert finished.stderr_tail.strip() == f"{niceness} {[(1, 6), (1000, 1000), (32, 32), (1 << 30, 1 << 30), (0, 0)]}"

    if processes._program("prlimit") is None or processes._program("nice") is None:
        pytest.skip("prlimit or nice is not installed: children are not limited")
    run(body)


def test_a_child_gets_its_tag_and_none_of_our_settings(run: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLSRELAY_REDIS_URL", "redis://:secret@host")
    monkeypatch.setenv("OTHER", "kept")

    async def body(children: Children) -> None:
        code = "import os, sys; sys.stderr.write(repr([os.environ.get(n) for n in sys.argv[1:]]))"
        finished = await children.run(
            python(code, TAG, "HLSRELAY_REDIS_URL", "OTHER", "HLSRELAY_DATA"), purpose="t", deadline_s=30, env={"HLSRELAY_DATA": "here"}
        )
        assert finished.stderr_tail == repr([incarnation(), None, "kept", "here"])

    run(body)


def test_without_pidfd_children_are_polled(run: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(children: Children) -> None:
        assert (await children.run(["false"], purpose="polled", deadline_s=30)).exit_code == 1
        async with children.spawn(["sleep", "600"], purpose="polled") as child:
            finished = await child.stop("test")
            assert finished is not None
            assert finished.exit_code == -signal.SIGTERM

    monkeypatch.delattr(os, "pidfd_open")
    run(body)


def test_without_the_confining_programs_children_run_all_the_same(run: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(children: Children) -> None:
        assert (await children.run(["true"], purpose="free", deadline_s=30, limits=Limits(cpu_s=9, niceness=1))).exit_code == 0

    monkeypatch.setattr(processes, "_program", lambda name: None)
    run(body)


def test_a_child_is_never_started_from_another_thread() -> None:
    caught: list[BaseException] = []

    def thread() -> None:
        try:
            asyncio.run(Children().run(["true"], purpose="test", deadline_s=1))
        except RuntimeError as error:
            caught.append(error)

    other = threading.Thread(target=thread)
    other.start()
    other.join()
    assert "main thread" in str(caught[0])


PARENT = """
import asyncio, sys
from hlsrelay.processes import Children, Stdout
async def main():
    async with Children().spawn(["sleep", "600"], purpose="orphan to be") as child:
        print(child.pid, flush=True)
        await child.wait()
asyncio.run(main())
"""


def start_parent(code: str) -> tuple[int, int]:
    """Start a process that starts a child through hlsrelay; return both PIDs once the child runs."""
    out, into = os.pipe()
    root = Path(processes.__file__).parent.parent
    pid = os.posix_spawn(
        sys.executable, [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(root)}, file_actions=[(os.POSIX_SPAWN_DUP2, into, 1)]
    )
    os.close(into)
    with os.fdopen(out) as pipe:
        return pid, int(pipe.readline())


def kill_parent(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_kill_9_of_the_parent_leaves_no_child() -> None:
    if processes._program("setpriv") is None:
        pytest.skip("setpriv is not installed: no parent-death signal")
    parent, child = start_parent(PARENT)
    # setpriv may not have come to its prctl yet: it has when the program behind it runs.
    while Path(f"/proc/{child}/comm").read_text().strip() != "sleep":
        os.sched_yield()
    kill_parent(parent)
    assert gone_within(child)


LAST_STEPS = {
    "SIGTERM": ("await child.wait()", signal.SIGTERM),
    "SIGINT": ("await child.wait()", signal.SIGINT),
    "SIGQUIT": ("await child.wait()", signal.SIGQUIT),
    "an exception that nobody handles": ("await asyncio.to_thread(input); 1 / 0", None),
    "sys.exit": ("await asyncio.to_thread(input); sys.exit(3)", None),
    "os._exit": ("await asyncio.to_thread(input); import os; os._exit(3)", None),
}


@pytest.mark.parametrize("how", LAST_STEPS)
def test_however_a_process_of_ours_ends_its_child_goes_with_it(how: str) -> None:
    if processes._program("setpriv") is None:
        pytest.skip("setpriv is not installed: no parent-death signal")
    step, number = LAST_STEPS[how]
    hold, go = os.pipe()
    ends, end = os.pipe()
    code = PARENT.replace("await child.wait()", f"sys.stdin, sys.stderr = open({hold}), open({end}, 'w'); {step}")
    os.set_inheritable(hold, True)
    os.set_inheritable(end, True)
    try:
        parent, child = start_parent(code)
        while Path(f"/proc/{child}/comm").read_text().strip() != "sleep":
            os.sched_yield()
        if number is None:
            os.write(go, b"\n")
        else:
            os.kill(parent, number)
        assert gone_within(child)
        os.waitpid(parent, 0)
    finally:
        for descriptor in (hold, go, ends, end):
            os.close(descriptor)


UNSWEPT = "HLSRELAY_TEST_CHILD"
"""Another tag, or a relay that starts in another test would sweep our orphans before we do."""
UNCONFINED = PARENT.replace(
    "async def main",
    f"from hlsrelay import orphans, processes\norphans.TAG, processes._program = {UNSWEPT!r}, lambda name: None\nasync def main",
)


def test_the_sweep_kills_the_children_of_a_dead_incarnation_and_spares_those_of_a_living_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(orphans, "TAG", UNSWEPT)
    dead, orphan = start_parent(UNCONFINED)
    living, spared = start_parent(UNCONFINED)
    try:
        kill_parent(dead)
        assert orphan in sweep()
        assert gone_within(orphan, 0)
        assert Path(f"/proc/{spared}/environ").exists()
        assert spared not in sweep()
    finally:
        kill_parent(living)
    assert spared in sweep()
    assert gone_within(spared, 0)
