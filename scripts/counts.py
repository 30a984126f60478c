"""Figures about the code itself, for docs/LOG.md: `python scripts/counts.py [FOLDER]`.

Counts modules and lines of the package, lines over 110 columns, module-level names that stand in several
modules, file names that stand in several folders, and the median length of a function (its own lines,
docstring left out).
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from statistics import median

LIMIT = 110


def main(folder: Path) -> None:
    """Print the figures of the package in `folder`."""
    files = sorted(folder.rglob("*.py"))
    names: Counter[str] = Counter()
    stems: Counter[str] = Counter(path.stem for path in files if not path.stem.startswith("__"))
    lengths: list[int] = []
    lines = wide = 0
    for path in files:
        text = path.read_text(encoding="utf-8")
        lines += len(text.splitlines())
        wide += sum(len(line) > LIMIT for line in text.splitlines())
        tree = ast.parse(text)
        names.update(set(_defined(tree)))
        lengths += [
            _length(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
    twice = sorted(
        name for name, count in names.items() if count > 1 and not name.startswith("_") and name != "main"
    )
    print(f"modules {len(files)}, lines {lines:,}, over {LIMIT} columns {wide:,}")
    long = sum(length > 40 for length in lengths)
    print(f"functions {len(lengths):,}, median length {median(lengths):.0f} lines, over 40 lines {long}")
    print(f"public names in several modules {len(twice)}: {', '.join(twice)}")
    print(f"file names in several folders {sum(count > 1 for count in stems.values())}")


def _defined(tree: ast.Module) -> list[str]:
    """Functions, classes and type aliases of a module."""
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or 0) - first.lineno + 1


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "rlaif")
