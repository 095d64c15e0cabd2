"""Errors for people. Exit codes: 0 done, 1 failure, 2 wrong input; 3 and 4 are verdicts."""

import re

# Users and passwords in addresses (even with a bare @ or /), and values after ? or # (part-?.csv has none).
_USER = re.compile(r"(?<=://)(?:[^/\s]*:\S*|[^/\s]*)@")
_VALUES = re.compile(r"(:[^\s?#]*[?#])(?=\S*=)\S+")
# Control characters except line break and tab, and direction marks.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Escape marks that would move a terminal's cursor or rename its window."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def without_secrets(text: str) -> str:
    return _VALUES.sub(r"\1...", _USER.sub("...@", text))


def installing(extra: str) -> str:
    return f"pip install 'kdc[{extra}]' (in a checkout: pip install '.[{extra}]')"


class KdcError(Exception):
    """A failure, exit code 1. Its texts show no secrets of addresses.

    Args:
        what: what was wrong, one sentence without a full stop.
        given: the wrong value.
        remedy: a command, a setting, a valid example.
    """

    exit_code = 1
    code = "failure"  # printed by `--json`

    def __init__(self, what: str, *, given: object = None, remedy: str = "") -> None:
        self.what = without_secrets(what)
        self.given = without_secrets(given) if isinstance(given, str) else given
        self.remedy = without_secrets(remedy)
        parts = [self.what]
        if given is not None:
            parts.append(f"given: {self.given}")
        if remedy:
            parts.append(f"remedy: {self.remedy}")
        super().__init__("\n  ".join(parts))


class InputError(KdcError):
    """A wrong flag, setting or file, exit code 2."""

    exit_code = 2
    code = "wrong_input"


class OutOfReach(InputError):
    """Known before training: no student can keep a limit."""

    code = "limit_out_of_reach"


class BoundNotShown(InputError):
    """The tuning set does not show a bound of `--aim`, `--abstain` or `--defer`."""

    code = "bound_not_shown"
