"""Build the site of the documentation: `make docs`. It writes `build/site`, and needs no network.

Pages of `docs/` keep their places. CONTRIBUTING, SECURITY and CHANGELOG become the section `project/`. A link to a
page becomes a link within the site. A link to another file of the repository becomes its path, since the site holds no
code. Zensical's strict build fails for a page or an anchor that does not exist; this script for a file that does not.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
_PROJECT = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
# Text and target of a link or a picture; code that looks like one has a backtick before it.
_LINK = re.compile(r"(?<!`)(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def main() -> None:
    """Put the pages together, and run Zensical over them."""
    pages = {path: BUILD / path.relative_to(ROOT) for path in sorted((ROOT / "docs").rglob("*.md"))}
    pages |= {ROOT / name: BUILD / "docs" / "project" / name.lower() for name in _PROJECT}
    shutil.rmtree(BUILD / "docs", ignore_errors=True)
    for source, page in pages.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(linked(source, pages), encoding="utf-8")
    for picture in (ROOT / "docs").rglob("*.svg"):
        shutil.copy(picture, BUILD / picture.relative_to(ROOT))
    shutil.copy(ROOT / "docs" / "zensical.toml", BUILD)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    sys.exit(subprocess.run(command, cwd=BUILD).returncode)


def linked(source: Path, pages: dict[Path, Path]) -> str:
    """Text of a page with links that fit its place in the site."""

    def link(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path or mark:
            return match[0]
        file = (source.parent / path).resolve()
        if not file.exists():
            sys.exit(f"{source.relative_to(ROOT)}: no such file: {target}")
        if file in pages:
            place = os.path.relpath(pages[file], pages[source].parent)
            return f"[{text}]({place}{'#' * bool(anchor)}{anchor})"
        name = f"`{file.relative_to(ROOT)}`"
        return name if text.strip("`") == name.strip("`") else f"{text} ({name})"

    return _LINK.sub(link, source.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
