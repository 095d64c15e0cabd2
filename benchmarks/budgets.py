"""Checks the code's size against `[tool.kdc.budgets]` in pyproject.toml.

Counts lines of each room, functions that take the whole run or all settings, and files over 300 lines.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONG_FILE = 300
WHOLES = ("Run", "Config")


def measure(rooms: Mapping[str, Path]) -> dict[str, int]:
    counts, long_files, takers = dict.fromkeys(rooms, 0), 0, dict.fromkeys(WHOLES, 0)
    for room, folder in rooms.items():
        for file in folder.glob("*.py"):
            text = file.read_text(encoding="utf-8")
            lines = text.count("\n")
            counts[room] += lines
            long_files += lines > LONG_FILE
            for types in _types_taken(ast.parse(text)):
                for whole in types & takers.keys():
                    takers[whole] += 1
    functions = {f"functions that take {whole}": count for whole, count in takers.items()}
    return {**counts, "all rooms": sum(counts.values()), **functions, f"files over {LONG_FILE} lines": long_files}


def _types_taken(tree: ast.Module) -> Iterator[set[str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            annotations = [each.annotation for each in every if each is not None and each.annotation is not None]
            parts = [part for annotation in annotations for part in ast.walk(annotation)]
            names = {part.id for part in parts if isinstance(part, ast.Name)}
            names |= {part.attr for part in parts if isinstance(part, ast.Attribute)}
            quoted = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            yield names.union(*(text.split(" | ") for text in quoted))


def problems(measured: Mapping[str, int], budgets: Mapping[str, int]) -> list[str]:
    over = [
        f"{what}: {count}, of {budgets[what]}" for what, count in measured.items() if count > budgets.get(what, count)
    ]
    missing = [f"{what}: {count}, and no budget" for what, count in measured.items() if what not in budgets]
    return over + missing + [f"{what}: a budget of nothing" for what in budgets if what not in measured]


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = [
        package.replace(".", "/").removeprefix("kdc").strip("/")
        for package in project["tool"]["setuptools"]["packages"]
    ]
    budgets = project["tool"]["kdc"]["budgets"]
    measured = measure({folder or "kdc": ROOT / folder for folder in folders})
    for what, count in measured.items():
        sys.stdout.write(f"{what:<28} {count:>6} of {budgets.get(what, '-'):>6}\n")
    wrong = problems(measured, budgets)
    for problem in wrong:
        sys.stderr.write(f"budget: {problem}\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
