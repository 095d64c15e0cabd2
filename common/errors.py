"""Errors that a person reads: what was wrong, the value that was given, the remedy.

The command line prints them without a traceback and ends with their exit code. The codes are 0 (done), 1 (failure),
2 (wrong input), and 3 and 4 for the verdicts of a contract (`kdc.artifact.contract.terms`).
"""

import re

# Users and passwords in addresses, also passwords with a bare @ or /; and the text after ? or #, if it holds a value. A
# pattern such as part-?.csv holds none.
_USER = re.compile(r"(?<=://)(?:[^/\s]*:\S*|[^/\s]*)@")
_VALUES = re.compile(r"(:[^\s?#]*[?#])(?=\S*=)\S+")
# Control characters but the line break and the tab, and the marks that turn the direction of writing.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text that a terminal shows as it is: marks that would move its cursor, or rename its window, become `\\x1b`.
    Names and labels come from artifacts and tables of others."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def without_secrets(text: str) -> str:
    """A text for people and logs: users, passwords, queries and fragments of its addresses are replaced by dots."""
    return _VALUES.sub(r"\1...", _USER.sub("...@", text))


def installing(extra: str) -> str:
    """The remedy if an extra of the package is missing."""
    return f"pip install 'kdc[{extra}]' (in a checkout: pip install '.[{extra}]')"


class KdcError(Exception):
    """Something failed. Exit code 1.

    Args:
        what: what was wrong, in one sentence without a full stop.
        given: the value that was met, which is shown as it is.
        remedy: what to do now: a command, a setting, a valid example.

    The message and these three show no secrets of addresses (`without_secrets`).
    """

    exit_code = 1
    code = "failure"  # tells programs what happened: with --json it is printed with the message

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
    """The person's input is wrong: a flag, a setting, a file. Exit code 2."""

    exit_code = 2
    code = "wrong_input"


class OutOfReach(InputError):
    """No student can keep a limit. The run ends before anything is trained."""

    code = "limit_out_of_reach"


class BoundNotShown(InputError):
    """The tuning rows do not show a bound that `--aim` or `--abstain` asks for."""

    code = "bound_not_shown"
