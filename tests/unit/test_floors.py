"""The house: imports go down only, and what talks to the outside does so through one door (design, section 3)."""

from __future__ import annotations

import ast
from pathlib import Path

import hlsrelay

PACKAGE = Path(hlsrelay.__file__).parent
HOUSE = """
values remembered
/ model errors failover ladder urls fields redis_keys hls media judge cookies expanding ranges portrait progress statuses scheduling breaker
codecs phase unchanged
/ aside bell clock turns metrics settings log addresses notify proc memory
/ declared board bucket_texts orphans pidfile pipes processes embedded http1 connections asking
transport recipe sound offers attempt parcel tracking pace
/ objects bodies
/ upstream encoder pool dask_worker dask_pool storage bucket ledger registry demand edge caches
/ roster membership redis_registry memory_registry backfill
/ link session
/ awake deletions
/ steering relay house stages cutting growing beside downloading sampling transcoding preloading desk joints
/ node web places checking probing
/ reporter site vitals
/ worker
/ handover
/ claims
/ demo_origin operate commands cli __main__
"""
FLOORS = [set(floor.split()) for floor in HOUSE.split("/")]
"""From the ground up."""
ONLY_IN = {
    "m3u8": {"hls"},
    "httpx": {"asking", "transport", "edge", "caches"},
    "aiohttp": {"transport"},
    "httptools": {"http1"},
    "aiohappyeyeballs": {"connections"},
    "httpx_aiohttp": {"transport"},
    "redis": {"redis_registry", "tracking"},
    "hiredis": {"redis_registry"},
    "obstore": {"objects"},
    "subprocess": {"processes"},
    "cryptography": {"media"},
    "dask": {"dask_pool"},
    "distributed": {"dask_pool", "dask_worker"},
    "time": {"clock", "processes"},
    "starlette": {"web", "demo_origin"},
    "uvicorn": {"web"},
    "typer": {"cli", "commands", "operate"},
}
PURE = {"asyncio", "time", "os", "socket", "pathlib", "subprocess", "httpx", "redis", "random"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every absolute module name that *path* imports, `from hlsrelay.x import y` as hlsrelay.x and hlsrelay.x.y."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "node_modules" not in path.parts and path != PACKAGE / "__init__.py"]


def floor_of(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


def test_every_module_lives_on_a_floor() -> None:
    assert {room(path) for path in modules()} == set().union(*FLOORS)


def test_imports_go_down_only() -> None:
    wrong = []
    for path in modules():
        here = room(path)
        for name in imports(path):
            there = name.split(".")[1] if name.startswith("hlsrelay.") else here
            if there == here or there == "__version__":
                continue
            below = floor_of(there) < floor_of(here)
            beside = floor_of(there) == floor_of(here) and _beside_allowed(here, there)
            if not below and not beside:
                wrong.append(f"{here} imports {there}")
    assert not wrong


def _beside_allowed(here: str, there: str) -> bool:
    """Rooms of one floor stand in one order, so that no circle can close."""
    order = [
        "errors",
        "expanding",
        "model",
        "codecs",
        "ranges",
        "failover",
        "urls",
        "redis_keys",
        "ladder",
        "fields",
        "media",
        "hls",
        "judge",
    ]
    order += ["portrait", "statuses"]
    order += [
        "bell",
        "clock",
        "settings",
        "addresses",
        "proc",
        "orphans",
        "pipes",
        "recipe",
        "sound",
        "processes",
        "offers",
        "attempt",
        "parcel",
        "embedded",
        "http1",
        "connections",
        "asking",
        "transport",
        "encoder",
        "pool",
        "dask_worker",
        "dask_pool",
        "storage",
        "bucket",
        "ledger",
        "caches",
        "desk",
        "joints",
        "cutting",
        "growing",
        "beside",
        "downloading",
        "sampling",
        "transcoding",
        "preloading",
        "stages",
        "house",
        "relay",
        "vitals",
        "site",
        "places",
        "checking",
        "probing",
        "demo_origin",
        "operate",
        "commands",
        "cli",
        "__main__",
    ]
    return here in order and there in order and order.index(there) < order.index(here)


def test_each_outside_library_has_one_door() -> None:
    wrong = []
    for path in modules():
        for name in imports(path):
            doors = ONLY_IN.get(name.split(".")[0])
            if doors is not None and room(path) not in doors:
                wrong.append(f"{room(path)} imports {name}")
    assert not wrong


def test_the_ground_floor_is_pure() -> None:
    wrong = [
        f"{path.name} imports {name}"
        for path in modules()
        if room(path) in FLOORS[0]
        for name in imports(path)
        if name.split(".")[0] in PURE
    ]
    assert not wrong
