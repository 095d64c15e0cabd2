"""Write the pages of reference that the code knows best: commands, settings, the Python API.

Command: `python docs/generate.py`. `tests/test_docs.py` fails if a page is not what this writes.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import typer.main

import kdc
from kdc.artifact.contract.terms import Conditions, Limits
from kdc.cli import app
from kdc.pipeline.config.resolve import settings_of

FOLDER = Path(__file__).parent / "reference"
_OF_ENGINE = ("predict", "logits", "decided", "label_sets", "close")
_NOTE = "<!-- Made by docs/generate.py: change the code instead. -->"


def pages() -> dict[str, str]:
    """Text of each page by its file name."""
    made = {"commands.md": _commands(), "settings.md": _settings(), "python.md": _python()}
    return {name: "\n".join([_NOTE, "", *lines, ""]) for name, lines in made.items()}


def _commands() -> Iterator[str]:
    group = typer.main.get_command(app)
    yield "# Commands"
    yield ""
    yield "`kdc COMMAND --help` prints the same. Exit codes: [exit-codes.md](exit-codes.md)."
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        yield from ("", f"## kdc {name}", "")
        yield from _help(command.help)
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option"]
        usage = " ".join([one.metavar or one.name.upper() for one in arguments] + ["[OPTIONS]"] * bool(options))
        yield from ("```", f"kdc {name} {usage}".strip(), "```")
        if arguments:
            yield from ("", "| argument | |", "|---|---|")
            yield from (f"| `{one.metavar or one.name.upper()}` | {_cell(one.help)} |" for one in arguments)
        panels: dict[str, list[str]] = {}
        for one in options:
            unit = "" if one.is_flag else " VALUE"
            row = f"| `{one.opts[0]}{unit}` | {_cell(one.help)}{_default(one)} |"
            panels.setdefault(one.rich_help_panel or "Options", []).append(row)
        for panel, rows in panels.items():
            yield from ("", f"| {panel} | |", "|---|---|", *rows)


def _help(text: str) -> Iterator[str]:
    """Paragraphs of a help text; lines after a backspace are an example."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        example = paragraph.startswith("\b\n")
        yield from ("```", paragraph.removeprefix("\b\n"), "```", "") if example else (paragraph, "")


def _default(option: typer.core.TyperOption) -> str:
    if option.is_flag or option.default is None or "default" in (option.help or "").lower():
        return ""
    return f" Default: `{option.default}`."


def _cell(text: str | None) -> str:
    return (text or "").replace(r"\[", "[").replace("|", "\\|")


def _settings() -> Iterator[str]:
    yield "# Settings of a run"
    yield ""
    yield "`kdc compress --set SECTION.KEY=VALUE` takes any of them, `--config FILE.toml` many. `kdc config` prints"
    yield "this list as such a file. The service has [settings of its own](service-settings.md)."
    for section, rows in groupby(settings_of(), key=lambda setting: setting[0].rpartition(".")[0]):
        yield from ("", f"## {section}", "", "| setting | default | meaning |", "|---|---|---|")
        for key, default, meaning in rows:
            value = "" if default is None else f"`{json.dumps(default)}`"
            yield f"| `{key}` | {_cell(value)} | {_cell(meaning)} |"


def _python() -> Iterator[str]:
    yield "# Python API"
    yield ""
    yield "`import kdc` loads nothing heavy. `kdc.__version__` is the version."
    yield "[Use kdc from Python](../how-to/use-from-python.md) has examples."
    for name in kdc.__all__:
        thing = getattr(kdc, name)
        if isinstance(thing, str):
            continue
        yield from ("", f"## kdc.{name}", "")
        if inspect.isclass(thing):
            yield from _docstring(thing)
            for model in (thing, Limits, Conditions) if thing is kdc.Contract else ():
                yield from _fields(model)
            for member in _OF_ENGINE if thing is kdc.Engine else ():
                function = getattr(thing, member)
                yield from ("", f"### kdc.{name}.{member}", "", *_signature(member, function), "")
                yield from _docstring(function)
        else:
            yield from (*_signature(f"kdc.{name}", thing), "")
            yield from _docstring(thing)


def _fields(model: type) -> Iterator[str]:
    yield from ("", f"| {model.__name__} | default |", "|---|---|")
    for key, field in model.model_fields.items():  # type: ignore[attr-defined]
        default = field.get_default(call_default_factory=True)
        yield f"| `{key}` | {'' if default is None else f'`{default}`'} |"


def _signature(name: str, function: object) -> Iterator[str]:
    """A call's signature without annotations that only a type checker reads."""
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in parameters if one.name != "self"]
    yield from ("```python", f"{name}{inspect.Signature(bare)}", "```")


def _docstring(thing: object) -> Iterator[str]:
    """A docstring of Google's style: `Args:` and the like become tables."""
    for paragraph in (inspect.getdoc(thing) or "").split("\n\n"):
        head, _, body = paragraph.partition("\n")
        if not re.fullmatch(r"(Args|Attributes|Returns|Raises):", head):
            yield from (paragraph, "")
            continue
        body = inspect.cleandoc(body)
        if head == "Returns:":
            yield from (f"Returns: {' '.join(body.split())}", "")
            continue
        yield from (f"| {head.removesuffix(':')} | |", "|---|---|")
        for entry in re.split(r"\n(?=\S)", body):
            key, _, meaning = entry.partition(": ")
            yield f"| `{key}` | {_cell(' '.join(meaning.split()))} |"
        yield ""


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{FOLDER / name}\n")
