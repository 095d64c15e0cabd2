"""A benchmark's result for a person who reads."""

from __future__ import annotations

from typing import Any

_HEAD = ("tokens", "rows", "subject", "p50 ms", "p95 ms", "p99 ms", "rows/s", "x first")


def render(found: dict[str, Any]) -> str:
    """The machine, the subjects, and a line for each case and subject."""
    machine, settings = found["machine"], found["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        ", ".join([machine["cpu"]["model"], f"{machine['cores']['usable']} cores", *machine["nvidia"]["devices"]]),
        packages,
        f"{settings['rounds']} rounds in turns, {settings['seconds']:g} s a turn after 3 calls that do not count; "
        f"cold start: median of {settings['starts']}, from the process to the first answer",
        "",
        *_align(
            [["subject", "runtime", "on", "threads", "cold start s", "peak MB"], *map(_subject, found["subjects"])]
        ),
        "",
        *_align([list(_HEAD), *_cases(found["subjects"])]),
        *(f"note: {one['name']}: {note}" for one in found["subjects"] for note in one["notes"]),
    ]
    return "\n".join(lines)


def _subject(one: dict[str, Any]) -> list[str]:
    return [
        one["name"],
        f"{one['runtime']} {one['variant']}".strip(),
        one["on"],
        str(one["threads"]),
        f"{one['cold_start_s']:.2f}",
        f"{one['peak_memory_bytes'] / 1e6:.0f}",
    ]


def _cases(subjects: list[dict[str, Any]]) -> list[list[str]]:
    """Grouped by case, so that what is compared stands together."""
    lines = []
    places = list(dict.fromkeys((case["length"], case["batch"]) for one in subjects for case in one["cases"]))
    for length, batch in sorted(places):
        for one in subjects:
            for case in one["cases"]:
                if (case["length"], case["batch"]) == (length, batch):
                    times = [f"{case[key]:.2f}" for key in ("p50_ms", "p95_ms", "p99_ms")]
                    ratio = "-" if case["against_first"] is None else f"{case['against_first']:.2f}"
                    speed = f"{case['rows_per_second']:.0f}"
                    lines.append([str(case["tokens"]), str(batch), one["name"], *times, speed, ratio])
    return lines


def _align(lines: list[list[str]]) -> list[str]:
    """Words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    words = [not any(_is_number(line[place]) for line in lines[1:]) for place in range(len(widths))]
    return [
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in lines
    ]


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()
