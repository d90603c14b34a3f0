"""The README says what the code has: every setting, field, verb, metric path and exit code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from hlsrelay.cli import app
from hlsrelay.fields import OPERATOR_FIELDS, RELAY_FIELDS
from hlsrelay.reporter import STATES
from hlsrelay.settings import Settings
from tests.faults import FAULTS

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


def repairs() -> set[str]:
    """Every repair that the sources name: where one is reported, handed on, or a constant that is."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "hlsrelay").rglob("*.py") if path.name != "metrics.py"]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    constants = {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant)
    }
    places: list[ast.AST] = []
    for node in nodes:
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            appends = called == "append" and "repairs" in ast.unparse(node.func)
            if called in ("repaired", "_repaired", "Step", "begun", "_counted_anew") or appends:
                places += node.args
            places += [keyword.value for keyword in node.keywords if keyword.arg == "repairs"]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            places += [node.value] if any("repairs" in ast.unparse(target) for target in targets) else []
    inside = [node for place in places for node in ast.walk(place)]
    found = [constants.get(node.id) if isinstance(node, ast.Name) else node for node in inside]
    values = {node.value for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {value for value in values if re.fullmatch("[a-z]+(_[a-z]+)*", value)}


def test_every_repair_is_in_the_readme_and_no_other() -> None:
    table = README.partition("### Repairs")[2].partition("\n### ")[0]
    named = re.findall(r"(?m)^\| `([a-z_]+)` \|", table)
    assert repairs() == set(named)
    assert named == sorted(set(named))
    assert {name for fault in FAULTS for name in fault.repairs} <= set(named)


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
