"""Pages in HTML and Markdown from the templates of this folder, which escape what they are given."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from kdc.common.tables import markdown, plain


def render(template: str, **values: Any) -> str:
    """Fill a template. Its filter `markdown` makes a table of rows of cells, header first, and takes the indent away
    that a cell may have."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_as_it_is if template.endswith(".md") else None,
    )
    environment.filters["markdown"] = lambda rows: Markup(markdown(rows))
    return environment.get_template(template).render(values)


def _as_it_is(value: Any) -> str:
    """A value as Markdown shows it as it is; a table is Markdown already."""
    return value if isinstance(value, Markup) else plain(str(value))
