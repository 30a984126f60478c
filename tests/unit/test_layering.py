"""Imports go one way, as the line in docs/architecture.md has it; here is the exact table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import rlaif

PACKAGE = Path(rlaif.__file__).parent

BASE = frozenset(
    {
        "__init__",
        "errors",
        "types",
        "digest",
        "labels",
        "progress",
        "resources",
        "apart",
        "shares",
        "stats",
        "crossed",
        "near_duplicates",
        "situations",
        "prediction_powered",
        "metrics",
        "process_memory",
        "ranks",
        "text",
        "files",
        "suggest",
        "sandbox",
        "yaml_text",
    }
)
"""What stands below everything: plain values and small helpers, which import only each other."""

BELOW: dict[str, frozenset[str]] = {
    "constitution": frozenset(),
    "prompts": frozenset(),
    "engines": frozenset(),
    "config": frozenset({"engines", "prompts", "judging"}),
    "runs": frozenset(),
    "io": frozenset({"runs"}),
    "judging": frozenset({"engines", "prompts"}),
    "audit": frozenset({"engines", "prompts", "judging"}),
    "chats": frozenset({"io", "runs"}),
    "collect": frozenset({"io", "runs", "audit"}),
    "models": frozenset({"engines"}),
    "reward": frozenset({"engines", "prompts", "judging", "models"}),
    "rl": frozenset({"engines", "config", "models", "reward"}),
    "moderation": frozenset({"engines", "prompts", "judging", "models", "reward"}),
    "directives": frozenset({"constitution", "engines", "prompts", "judging", "moderation", "reward"}),
    "serving": frozenset(
        {"chats", "directives", "engines", "judging", "models", "moderation", "prompts", "reward"}
    ),
    "results": frozenset({"prompts", "config", "judging", "audit", "models", "reward", "rl"}),
    "plot": frozenset({"results"}),
    "stages": frozenset(
        {"engines", "prompts", "config", "judging", "models", "moderation", "reward", "rl", "results"}
    ),
    "report": frozenset({"directives", "judging", "audit", "results", "runs", "plot"}),
    "jobs": frozenset(
        {
            "directives",
            "engines",
            "prompts",
            "constitution",
            "config",
            "runs",
            "io",
            "judging",
            "audit",
            "models",
            "moderation",
            "reward",
            "rl",
            "results",
            "stages",
            "report",
        }
    ),
    "pipeline": frozenset(
        {
            "directives",
            "engines",
            "prompts",
            "constitution",
            "config",
            "runs",
            "io",
            "judging",
            "audit",
            "models",
            "moderation",
            "rl",
            "results",
            "stages",
            "report",
            "jobs",
        }
    ),
    "interface": frozenset(
        {
            "audit",
            "config",
            "constitution",
            "engines",
            "io",
            "jobs",
            "judging",
            "models",
            "pipeline",
            "prompts",
            "results",
            "reward",
            "rl",
            "runs",
            "stages",
        }
    ),
    "cli": frozenset(
        {
            "directives",
            "engines",
            "prompts",
            "constitution",
            "config",
            "runs",
            "judging",
            "audit",
            "chats",
            "collect",
            "models",
            "results",
            "report",
            "serving",
            "jobs",
            "pipeline",
        }
    ),
    "__main__": frozenset({"cli"}),
}
"""For each part, the other parts that it may import besides `BASE`."""


ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"


def part_of(module: str) -> str:
    """`rlaif.runs.journal` is of `runs`."""
    return module.split(".")[1] if "." in module else "__init__"


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts), path))
    return found


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every module of ours that a file imports, wherever in it, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "rlaif"
            )
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "relative"
        elif isinstance(node, ast.ImportFrom) and node.module == "rlaif":
            known = {module for module, _ in modules()}
            names = [f"rlaif.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name if name in known else "rlaif") for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlaif."):
            yield node.lineno, str(node.module)


def test_imports_go_one_way() -> None:
    wrong = []
    for module, path in modules():
        part = part_of(module)
        if part == "__init__":
            continue  # the front door names what is behind it, and imports it when it is first used
        for line, name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            target = "relative" if name == "relative" else part_of(name)
            may = BASE if part in BASE else BASE | {part} | BELOW[part]
            if target not in may:
                wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {part} imports {name}")
    assert wrong == []


def test_the_table_has_no_cycle() -> None:
    order: list[str] = []
    while len(order) < len(BELOW):
        ready = [part for part in BELOW if part not in order and BELOW[part] <= set(order)]
        assert ready, "a cycle"
        order += ready


def test_the_line_in_the_docs_is_the_table() -> None:
    (line,) = (each for each in ARCHITECTURE.read_text("utf-8").splitlines() if each.startswith("cli, "))
    levels = [group.split(", ") for group in line.split(" → ")]
    level = {part: number for number, group in enumerate(levels) for part in group}
    assert set(level) == set(BELOW) - {"__main__"}
    wrong = [
        f"{part} imports {below}" for part in level for below in BELOW[part] if level[below] <= level[part]
    ]
    assert wrong == []


def test_the_docs_list_every_package_and_module() -> None:
    text = ARCHITECTURE.read_text("utf-8")
    wanted = {f"`{part}/`" for part in BELOW if (PACKAGE / part).is_dir()} | {"`prompts.py`"}
    wanted |= {f"`{module}`" for module in BASE - {"__init__"}}
    assert [each for each in sorted(wanted) if each not in text] == []


def test_every_part_is_known_and_exists() -> None:
    found = {part_of(module) for module, _ in modules()}
    assert found - BASE == set(BELOW)
    assert len(modules()) > 50


def test_the_light_parts_are_free_of_torch() -> None:
    """The parts that must never import torch, not even inside a function."""
    heavy = ("torch", "transformers", "trl", "peft", "accelerate")
    wrong = []
    for module, path in modules():
        if part_of(module) in BASE | {
            "constitution",
            "prompts",
            "config",
            "runs",
            "io",
            "judging",
            "audit",
            "chats",
            "collect",
            "directives",
            "plot",
            "cli",
        }:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
                wrong += [
                    f"{path.name}:{node.lineno}: {name}" for name in names if name.split(".")[0] in heavy
                ]  # type: ignore[attr-defined]
    assert wrong == []
