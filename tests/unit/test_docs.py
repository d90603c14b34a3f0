"""The README says what the code has: every setting, field, verb, metric path and exit code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hlsrelay.cli import app
from hlsrelay.fields import OPERATOR_FIELDS, RELAY_FIELDS
from hlsrelay.settings import Settings
from hlsrelay.worker import STATES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_in_the_readme(name: str) -> None:
    assert f"`HLSRELAY_{name.upper()}`" in README


@pytest.mark.parametrize("name", [*OPERATOR_FIELDS, *RELAY_FIELDS])
def test_every_field_is_in_the_readme(name: str) -> None:
    assert f"`{name}`" in README


@pytest.mark.parametrize("state", STATES)
def test_every_state_is_in_the_readme(state: str) -> None:
    assert f"`{state}`" in README


def test_every_verb_is_in_the_readme_and_no_other() -> None:
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    named = set(re.findall(r"`hlsrelay ([a-z-]+)", README))
    assert verbs == named


def test_no_registry_host_and_no_machine_path_stands_in_any_file() -> None:
    words = ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "deb.debian" + ".org", "/wor" + "k/")
    skipped = {".git", ".venv", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__"}
    texts = [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.parts) and path.suffix not in {".png", ".pyc"}]
    found = [f"{path.relative_to(ROOT)}: {word}" for path in texts for word in words if word in path.read_text(errors="replace")]
    assert not found
