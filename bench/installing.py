"""Has the peers' programs at hand: Debian packages where we may install them, Python packages in an environment of the bench's own."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from bench.origin import ROOT, found
from hlsrelay.errors import ChildError
from hlsrelay.processes import Children

REQUIREMENTS = ROOT / "bench" / "requirements.txt"
INSTALL_WITHIN_S = 600.0


class Programs:
    """Finds programs, installed at their first use; what can't be had is a reason, not an error."""

    def __init__(self, cache: Path, children: Children) -> None:
        self._cache, self._children = cache, children
        self._updated = False
        self._no_python = ""

    async def debian(self, program: str, packages: tuple[str, ...]) -> str:
        """Return why *program* can't be had; empty where it can."""
        if found(program):
            return ""
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            return f"not on this machine: {program} (Debian, Ubuntu: apt install {' '.join(packages)})"
        print(f"bench: installing {' '.join(packages)} from Debian", file=sys.stderr, flush=True)
        if not self._updated:
            self._updated = True
            await self._run(["apt-get", "-qq", "update"])
        reason = await self._run(["apt-get", "-qq", "install", "-y", "--no-install-recommends", *packages])
        return "" if found(program) else f"{program} could not be installed: {reason or 'it is not in its package'}"

    async def python(self, program: str) -> tuple[Path, str]:
        """Return where a program of requirements.txt is, and why it can't be had (empty where it can)."""
        wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
        folder = self._cache / f"peers-{wanted}"
        path = folder / "bin" / program
        if not (folder / "complete").exists() and not self._no_python:
            print(f"bench: installing the Python peers into {folder}", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            reason = await self._run([sys.executable, "-m", "venv", str(folder)])
            reason = reason or await self._run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)])
            self._no_python = reason
            if not reason:
                (folder / "complete").touch()
        if self._no_python:
            return path, f"{program} could not be installed: {self._no_python}"
        return path, "" if path.exists() else f"{program} is not in its package"

    async def _run(self, argv: list[str]) -> str:
        """Run an installer; returns its last words where it failed."""
        env = {"DEBIAN_FRONTEND": "noninteractive", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
        try:
            done = await self._children.run(argv, purpose=f"installing with {Path(argv[0]).name}", deadline_s=INSTALL_WITHIN_S, env=env)
        except ChildError as error:
            return str(error)
        return (done.stderr_tail.strip().rpartition("\n")[2] or f"exit code {done.exit_code}") if done.exit_code else ""
