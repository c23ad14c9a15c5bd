"""Imports point one way, and `import lit_pref` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lit_pref"
FILES = sorted(ROOT.rglob("*.py"))

ALLOWED = {
    "errors": set(),
    "transfer": set(),
    "types": {"errors", "transfer"},
    "functional": {"errors", "transfer", "types"},
    "metrics": {"errors", "transfer", "types", "functional"},
    "engine": {"errors", "transfer", "types", "functional"},
    "policies": {"errors", "transfer", "types", "functional", "engine"},
    "rewards": {"errors", "transfer", "types", "functional", "engine", "policies"},
    "sampling": {"errors", "transfer", "types", "functional", "engine", "policies"},
    "formats": {"errors", "transfer", "types", "functional"},
    "tasks": {"errors", "transfer", "types", "functional", "formats"},
    "data": {"errors", "transfer", "types", "functional", "formats", "tasks", "rewards"},
    "objectives": {"errors", "transfer", "types", "functional", "engine", "policies", "metrics"},
    "callbacks": {
        "errors", "transfer", "types", "functional", "formats", "tasks", "data", "metrics", "rewards", "policies",
        "engine", "sampling",
    },
    "report": {"errors", "transfer", "types", "functional", "metrics"},
}  # fmt: skip
FREE = {"app", "testing", "__init__"}


def package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Top-level names imported by a file, those inside functions included."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    mine = package(path)
    if mine in FREE:
        return
    used = {n.split(".")[1] for n in imports(path) if n.startswith("lit_pref.")}
    wrong = used - ALLOWED[mine] - {mine}
    assert not wrong, f"{path.name} in {mine} must not import {sorted(wrong)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_hydra_is_known_in_app_alone(path: Path) -> None:
    found = {n.split(".")[0] for n in imports(path)} & {"hydra", "omegaconf"}
    assert package(path) == "app" or not found


def test_nothing_imports_testing() -> None:
    users = [
        p for p in FILES
        if package(p) != "testing" and any(n.startswith("lit_pref.testing") for n in imports(p))
    ]  # fmt: skip
    assert users == []


@pytest.mark.parametrize(
    "code",
    ["import lit_pref", "import lit_pref.app.train", "import lit_pref.app.cli"],
)
def test_light_imports_have_no_torch(code: str) -> None:
    check = f"{code}; import sys; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_every_public_name_is_there() -> None:
    import lit_pref

    for name in lit_pref.__all__:
        assert getattr(lit_pref, name) is not None
