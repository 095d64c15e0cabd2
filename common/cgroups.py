"""Control groups: the folders of Linux in which the limits of a container are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cgroup_folders(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """The folders of this process's control group and of the groups above it, whose limits hold too.

    A folder may be missing. There is none on macOS and Windows.

    Args:
        controller: "cpu" or "memory".
        root: where `/proc` and `/sys` are found.

    Yields:
        A folder, and the version (1 or 2) of control groups that says which files are in it.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 names no controllers and has one tree. Version 1 has a tree for each, which is mounted under the
        # controller's name or that of several, such as "cpu,cpuacct".
        for tree in {controller, controllers} if controllers else {""}:
            for level in (PurePosixPath(group), *PurePosixPath(group).parents):
                yield root / "sys/fs/cgroup" / tree / str(level).lstrip("/"), 1 if controllers else 2
