"""Pages in HTML, Markdown and LaTeX from templates. Those in HTML escape what they are given."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from kdc.common.tables import markdown

_TEX = str.maketrans(
    {character: rf"\{character}" for character in "&%_#$"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$"}
)


def render(template: Path, **values: Any) -> str:
    """Fill a template, which may extend `layout.html` and import `table.html` of this folder.

    Its filters are `markdown` (a table of rows of cells, header first) and `tex` (a text that LaTeX shows as it is);
    both take the indent away that a cell may have.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = lambda rows: markdown([[cell.strip() for cell in row] for row in rows])
    environment.filters["tex"] = lambda text: text.strip().translate(_TEX)
    return environment.get_template(template.name).render(values)
