"""Options of commands as table rows (`Setting`), which become Typer's options."""

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import typer


@dataclass(frozen=True)
class Setting:
    """An option; without a value it sets nothing."""

    name: str  # option, e.g. "max-drop"
    type: Any  # bool makes a flag
    help: str  # effect, unit, default
    section: str = ""
    panel: str | None = None  # heading in `--help`
    keys: tuple[str, ...] = ()  # settings that it sets, if not `section.name`
    least: float | None = None  # smallest number allowed

    @property
    def argument(self) -> str:
        return self.name.replace("-", "_")

    @property
    def sets(self) -> tuple[str, ...]:
        """Dotted setting names."""
        return self.keys or (f"{self.section}.{self.argument}".removeprefix("."),)

    @property
    def parameter(self) -> inspect.Parameter:
        hint: Any = self.type | None
        hint = Annotated[hint, option(self.help, f"--{self.name}", panel=self.panel, least=self.least)]
        return inspect.Parameter(self.argument, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


def settings(section: str, panel: str | None, *rows: tuple[Any, ...]) -> tuple[Setting, ...]:
    """Each row is (name, type, help, keys...)."""
    return tuple(Setting(name, kind, help, section, panel, tuple(keys)) for name, kind, help, *keys in rows)


def takes(*settings: Setting) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The command's first argument receives the values by setting name."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(command).parameters.values()
        parameters = [setting.parameter for setting in settings]
        parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            pairs = [(setting, values.pop(setting.argument)) for setting in settings]
            command({key: value for setting, value in pairs if value is not None for key in setting.sets}, **values)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def taken(given: dict[str, Any], settings: Iterable[Setting]) -> dict[str, Any]:
    return {key: given.pop(key) for setting in settings for key in setting.sets if key in given}


def option(help: str, *names: str, panel: str | None = None, least: float | None = None) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, min=least, show_default=False)


def argument(help: str, metavar: str | None = None) -> Any:
    escaped = help.replace("[@", r"\[@")  # rich would take it for markup
    return typer.Argument(help=escaped, metavar=metavar, show_default=False)
