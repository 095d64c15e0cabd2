"""Renders HTML and Markdown templates, which escape values."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from kdc.common.tables import code, markdown, plain


def render(template: Path, **values: Any) -> str:
    """Filter `markdown` makes a table of rows, header first."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_as_it_is if template.suffix == ".md" else None,
    )
    environment.filters["markdown"] = lambda rows: Markup(markdown(rows))
    environment.filters["code"] = lambda text: Markup(code(text))
    return environment.get_template(template.name).render(values)


def _as_it_is(value: Any) -> str:
    return value if isinstance(value, Markup) else plain(str(value))
