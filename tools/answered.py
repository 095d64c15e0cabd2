"""Both models' answers to rows without labels, as `kdc.tools.unlabelled` keeps them for `kdc.tools.filled`."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kdc.common.errors import InputError, KdcError
from kdc.common.files import write_whole

Ints = NDArray[np.int64]
_MOST_BYTES = 1 << 30  # of an unpacked file: tens of millions of rows


@dataclass(frozen=True)
class Answered:
    """The rows that a verdict is about, and both models' answers to them."""

    texts: Ints  # (rows,) a number for each text or pair: `fields.hash_of`
    sides: Ints  # (rows, 2) a number for each text of a pair: `fields.sides_of`; (rows, 0) for single texts
    student: Ints  # (rows,) places of labels
    teacher: Ints  # (rows,) places of labels
    artifact: str  # the student's SHA-256
    variant: str  # of the student

    @property
    def differs(self) -> NDArray[np.bool_]:
        """(rows,) whether the two models answer a row differently."""
        return self.student != self.teacher

    @property
    def to_label(self) -> Ints:
        """The numbers of the differing texts, in the order in which a person gets them: random, and always the same."""
        return np.unique(self.texts[self.differs])

    def sample(self, most: int | None) -> Self:
        """A random sample of the rows, as large as it can be with `most` differing texts.

        It takes the texts in the order of their numbers, which are hashes, and ends before the first differing text
        that is one too many. So the share of differing texts in it is not biased (Haldane 1945, Biometrika 33:222).
        """
        differing = self.to_label
        if most is None or len(differing) <= most:
            return self
        kept = self.texts < differing[most]
        columns = {name: getattr(self, name)[kept] for name in ("texts", "sides", "student", "teacher")}
        return replace(self, **columns)

    def write(self, path: Path) -> None:
        """Write it beside the texts to label."""
        stream = io.BytesIO()
        columns: dict[str, Any] = {name: np.asarray(value) for name, value in vars(self).items()}
        np.savez_compressed(stream, **columns)
        write_whole(answers_beside(path), stream.getvalue())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what lies beside the texts to label.

        Raises:
            InputError: nothing does.
            KdcError: it is damaged.
        """
        file = answers_beside(path)
        try:
            with arrays_of(file, "the models' answers", "write the texts to label again: --to-label") as kept:
                texts, sides, student, teacher = (
                    kept[name].astype(np.int64, casting="safe") for name in ("texts", "sides", "student", "teacher")
                )
                if not texts.shape == student.shape == teacher.shape == sides.shape[:1] or sides.shape[1] not in (0, 2):
                    raise ValueError("columns that do not fit each other")
                return cls(texts, sides, student, teacher, str(kept["artifact"]), str(kept["variant"]))
        except FileNotFoundError as error:
            remedy = "the filled file needs the name and the folder that --to-label gave it"
            raise InputError("the models' answers are not beside the labels", given=file, remedy=remedy) from error


@contextmanager
def arrays_of(path: Path, what: str, remedy: str) -> Iterator[Any]:
    """Open an .npz file that others may have written. Nothing in it is unpickled.

    Raises:
        FileNotFoundError: it is not there.
        KdcError: it is more than 1 GiB once unpacked, or an error occurs within the block.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES} bytes once unpacked")
        with np.load(path, allow_pickle=False) as kept:
            yield kept
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        raise KdcError(f"{what} cannot be read", given=f"{path}: {error}", remedy=remedy) from error


def answers_beside(path: Path) -> Path:
    """Where the models' answers to the texts of a file are kept."""
    return path.with_name(f"{path.name}.answers.npz")


def id_of(number: int) -> str:
    """A text's number as OUT.csv has it: with a letter, so that no spreadsheet takes it for a number."""
    return f"r{number & (2**64 - 1):016x}"
