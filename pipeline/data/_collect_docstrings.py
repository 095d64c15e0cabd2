"""Collects the standard library's docstrings in a process of its own, since imports have side effects.

Prints JSON: `objects`, [module, name, docstring] in a fixed order, and `unimportable`, {module: reason}.

Command: `python -I -S -B -W ignore pipeline/data/_collect_docstrings.py`
"""

import importlib
import importlib.util
import json
import os
import pkgutil
import sys
import types

# Skipped with their submodules.
_ACTING = {"antigravity", "this", "idlelib", "lib2to3", "turtle", "turtledemo", "tkinter"}
_INTERNAL = {"test", "distutils", "ensurepip", "site", "encodings", "pydoc_data", "opcode", "stringprep"}
_TWINS = {"msilib", "genericpath", "ntpath", "posixpath", "posix", "nt", "nturl2path"}
SKIPPED = _ACTING | _INTERNAL | _TWINS
SKIPPED_PARTS = {"__main__", "test", "tests", "_test"}  # act on import

FUNCTIONS = (
    types.FunctionType | types.BuiltinFunctionType | types.MethodDescriptorType | types.ClassMethodDescriptorType
)


def module_names() -> list[str]:
    """Public modules, shallow ones first: an object gets its shortest name."""
    names = {"os.path"}  # no file has this name
    packages: list[tuple[str, list[str]]] = []
    for name in sorted(sys.stdlib_module_names - SKIPPED):
        if not name.startswith("_"):
            names.add(name)
            spec = importlib.util.find_spec(name)
            packages.append((name, list(spec.submodule_search_locations or []) if spec else []))
    while packages:
        package, folders = packages.pop()
        for part in pkgutil.iter_modules(folders):
            if not part.name.startswith("_") and part.name not in SKIPPED_PARTS:
                names.add(f"{package}.{part.name}")
                if part.ispkg:
                    packages.append((f"{package}.{part.name}", [os.path.join(top, part.name) for top in folders]))
    return sorted(names, key=lambda name: (name.count("."), name))


def documented(module_name: str, module: types.ModuleType) -> list[list[str]]:
    exported = set(getattr(module, "__all__", ()))
    candidates: list[tuple[str, str | None]] = []
    for name, value in sorted(vars(module).items()):
        is_own = name in exported or getattr(value, "__module__", None) == module.__name__
        if name.startswith("_") or not is_own or not isinstance(value, type | FUNCTIONS):
            continue
        candidates.append((name, value.__doc__))
        if isinstance(value, type):
            for member_name, member in sorted(vars(value).items()):
                function = getattr(member, "__func__", member)
                if not member_name.startswith("_") and isinstance(function, FUNCTIONS):
                    candidates.append((f"{name}.{member_name}", function.__doc__))
    return [[module_name, name, text] for name, text in candidates if isinstance(text, str) and text.strip()]


def main() -> None:
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    objects: list[list[str]] = []
    unimportable: dict[str, str] = {}
    for name in module_names():
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - another platform's module, or a missing C library
            unimportable[name] = f"{type(error).__name__}: {error}"
            continue
        objects.extend(documented(name, module))
    with answer:
        json.dump({"objects": objects, "unimportable": unimportable}, answer)


if __name__ == "__main__":
    main()
