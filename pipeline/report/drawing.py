"""Figures as inline SVG, with text as text."""

import html
import io
import re
import warnings
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# matplotlib's colours stand for variables of the page.
_NAMES = ("ink", "soft", "paper", "first", "second", "third", "fourth")
_VARIABLES = {f"#0a0b{number:02x}": f"--{name}" for number, name in enumerate(_NAMES, start=16)}
INK, SOFT, PAPER, *SERIES = _VARIABLES
FIRST, SECOND = SERIES[:2]
_MARKS = "os^D"
# A decorator: the style must apply until a figure is saved.
styled = rc_context(fname=Path(__file__).with_name("figures.mplstyle"))


def svg(figure: Figure, name: str, words: str) -> str:
    """Call under `styled`. `name` makes ids unique; `words` are the text alternative."""
    stream = io.StringIO()
    with warnings.catch_warnings():  # the browser has more fonts
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{box.group()} role="img" aria-labelledby="{name}-told"><title id="{name}-told">{html.escape(words)}</title>'
    )
    return head + text[text.index(">") + 1 :]


def series(number: int) -> tuple[str, str]:
    return SERIES[number % len(SERIES)], _MARKS[number // len(SERIES) % len(_MARKS)]


def write(
    axes: Axes, text: str, place: tuple[float, float], *, above: float, aside: float = 0.0, colour: str = INK
) -> None:
    """Offsets are points."""
    axes.annotate(text, place, xytext=(aside, above), textcoords="offset points", ha="center", color=colour)
