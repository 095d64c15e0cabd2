"""Finds each split's source.

`--data` holds GLUE's TSV files, a `save_to_disk` dataset, or train and dev files. Otherwise `--train` names a file,
GLUE comes from the hub, or kdc makes `pydocs`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from kdc.common import records
from kdc.common.errors import InputError
from kdc.pipeline.config.data_settings import LENGTH, DataSettings
from kdc.pipeline.config.labelled import HOW, read_description
from kdc.pipeline.config.tasks import TASKS, Task, find_task

Format = records.Format | Literal["glue_tsv", "saved", "hub", "pydocs"]
SPLITS = ("train", "tune", "unlabeled", "eval", "eval_mismatched")  # in row-number order
HUB_NAME = "nyu-mll/glue"

FORMATS: dict[str, records.Format] = {**records.FORMATS, ".json": "jsonl"}
_DELIMITED = ("csv", "tsv", "glue_tsv")
_STEMS = {
    "train": ("train",),
    "validation": ("dev", "validation", "eval", "val", "valid"),
    "validation_matched": ("dev_matched", "validation_matched"),
    "validation_mismatched": ("dev_mismatched", "validation_mismatched"),
}
# GLUE's columns with other names than the hub's.
_GLUE_NAMES: dict[str, dict[str, str]] = {
    "mnli": {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
    "mrpc": {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
    "qqp": {"label": "is_duplicate"},
    "stsb": {"label": "score"},
}


@dataclass(frozen=True)
class SplitSource:
    split: str  # "train", "eval", "eval_mismatched", "unlabeled", or "scores" for a black box's answers
    format: Format
    path: Path | None = None
    part: str = ""  # on the hub or in a `save_to_disk` folder
    task: str = ""  # of GLUE
    dialect: records.Dialect = records.USUAL

    @property
    def name(self) -> str:
        if self.path is not None:
            return f"{self.path}[{self.part}]" if self.part else str(self.path)
        return f"{HUB_NAME} {self.task} {self.part}" if self.format == "hub" else f"pydocs {self.split}"

    @property
    def files(self) -> list[Path]:
        if self.path is None:
            return []
        root = self.path / self.part
        return sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]

    @property
    def unit(self) -> str:
        """Separates a file's name from a line or row number."""
        return ":" if self.format in ("glue_tsv", "csv", "tsv", "jsonl") else " row "


class Columns(NamedTuple):
    """The columns to read, as possible names, best first; () if unread."""

    text: tuple[str, ...]
    text_pair: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    group: tuple[str, ...] = ()  # optional in unlabelled files
    time: tuple[str, ...] = ()
    how: tuple[str, ...] = ()  # of a table that `kdc label` wrote
    slices: tuple[str, ...] = ()  # names of as many columns


def columns_of(
    task: Task, *, labeled: bool, group: str | None = None, time: str | None = None, how: str | None = None
) -> Columns:
    """Includes GLUE's own names."""
    own = _GLUE_NAMES.get(task.name, {})

    def names(column: str | None) -> tuple[str, ...]:
        return tuple(name for name in (own.get(column or ""), column) if name)

    return Columns(*map(names, (task.text, task.text_pair, task.label if labeled else None, group, time, how)))


def columns_for(source: SplitSource, task: Task, data: DataSettings) -> Columns:
    """Raises InputError if a labelled table's description is damaged."""
    labeled = source.split != "unlabeled"
    columns = columns_of(
        task,
        labeled=labeled,
        group="group" if source.format == "pydocs" else data.group,
        time=data.time if source.split == "train" else None,
        how=None if not labeled or read_description(source.path) is None else HOW,
    )
    slices = tuple(name for name in data.slices if name != LENGTH)
    return columns._replace(slices=slices if source.split in ("train", "eval") else ())


def unsliced(data: DataSettings) -> DataSettings:
    return data.model_copy(update={"slices": ()})


def for_split(source: SplitSource, sources: Sequence[SplitSource], data: DataSettings) -> DataSettings:
    """Without slices for training rows of which none are evaluated."""
    has_eval = any(other.split == "eval" for other in sources)
    return unsliced(data) if has_eval and source.split == "train" else data


def locate(data: DataSettings) -> tuple[SplitSource, ...]:
    """Find train, then evaluation, then unlabeled splits.

    Raises:
        InputError: unknown task, missing or unknown file, conflicting sources, or an unused delimiter or encoding.
    """
    task = find_task(data.task) if data.task is not None else None
    name = task.name if task is not None else ""
    files = {"train": data.train, "eval": data.eval, "unlabeled": data.unlabeled}
    given = {split: path for split, path in files.items() if path is not None}
    if data.data is not None and given.keys() & {"train", "eval"}:
        raise InputError("two sources of data", given="--data and --train / --eval", remedy="give one of them")
    if "eval" in given and "train" not in given:
        raise InputError("an evaluation file without a training file", given=data.eval, remedy="add --train FILE")
    if "train" in given:
        splits = []
    elif data.data is not None:
        splits = _in_folder(data.data, task)
    elif task is None:
        raise InputError("no data was given", remedy="`kdc compress --train train.csv --text TEXT_COLUMN`")
    elif task.hub_config:
        splits = [SplitSource(split, "hub", part=part, task=name) for split, part in _hub_splits(task).items()]
    else:
        splits = [SplitSource("train", "pydocs"), SplitSource("eval", "pydocs")]
    splits += [file_source(split, path, name) for split, path in given.items()]
    for option, formats in (("delimiter", _DELIMITED), ("encoding", (*_DELIMITED, "jsonl"))):
        if getattr(data, option) is not None and not any(split.format in formats for split in splits):
            listed = ", ".join(split.name for split in splits)
            raise InputError(f"--{option} fits none of the files", given=listed, remedy="leave it out")
    return tuple(replace(split, dialect=data.dialect) for split in splits)


def is_glue(name: str) -> bool:
    """GLUE has unquoted .tsv files, maybe with numbers as labels."""
    return name in TASKS and bool(TASKS[name].glue_folder)


def file_source(split: str, path: Path, task_name: str) -> SplitSource:
    """Raises InputError for a missing file or an unknown format."""
    if (path / "state.json").is_file():
        return SplitSource(split, "saved", path)
    if not path.is_file():
        what = "this folder is not one saved with `Dataset.save_to_disk`" if path.is_dir() else "no such file"
        raise InputError(what, given=path, remedy="name a .csv, .tsv, .jsonl, .parquet or .xlsx file")
    format = FORMATS.get(path.suffix.lower())
    if format is None:
        raise InputError("unknown file format", given=path, remedy=f"known endings: {', '.join(FORMATS)}")
    if format == "tsv" and is_glue(task_name):
        return SplitSource(split, "glue_tsv", path, task=task_name)
    return SplitSource(split, format, path)


def _hub_splits(task: Task | None) -> dict[str, str]:
    evals = task.eval_splits if task is not None else ("validation",)
    return dict(zip(("train", "eval", "eval_mismatched"), ("train", *evals), strict=False))


def _in_folder(folder: Path, task: Task | None) -> list[SplitSource]:
    if folder.is_file():
        raise InputError("--data wants a folder", given=folder, remedy=f"for a file: --train {folder}")
    if not folder.is_dir():
        raise InputError("no such folder", given=folder, remedy="check --data")
    folders, wanted = [folder], _hub_splits(task)
    glue_folder = task.glue_folder if task is not None else ""
    if task is not None and glue_folder:
        names = {glue_folder.lower(), task.name}
        folders = (
            sorted(child for child in folder.iterdir() if child.is_dir() and child.name.lower() in names) + folders
        )
    for candidate in folders:
        if (candidate / "state.json").is_file():
            splits = {"train": SplitSource("train", "saved", candidate)}
        elif (candidate / "dataset_dict.json").is_file():
            splits = _saved(candidate, wanted)
        else:
            splits = _files(candidate, wanted, task.name if task is not None else "")
            if "train" not in splits:
                continue
        missing = [part for split, part in wanted.items() if split not in splits]
        # Custom tasks can hold out training rows.
        if missing and (task is not None or "train" not in splits):
            absent = [f"{_STEMS[part][0]}.tsv" if glue_folder else part for part in missing]
            remedy = "add them, or name the files: --train FILE --eval FILE (without --eval some rows are held out)"
            raise InputError(f"{' and '.join(absent)} missing", given=candidate, remedy=remedy)
        return list(splits.values())
    remedy = "it wants train.tsv and dev.tsv (or .csv, .jsonl, .parquet), or a folder made by `save_to_disk`"
    raise InputError("no training rows in this folder", given=folder, remedy=remedy)


def _saved(folder: Path, wanted: dict[str, str]) -> dict[str, SplitSource]:
    listing = folder / "dataset_dict.json"
    try:
        parts = set(json.loads(listing.read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("the save_to_disk folder is damaged", given=listing, remedy="save it again") from error
    splits = {}
    for split, part in wanted.items():
        names = [stem for stem in (part, *_STEMS[part]) if stem in parts]
        if names:
            splits[split] = SplitSource(split, "saved", folder, part=names[0])
    return splits


def _files(folder: Path, wanted: dict[str, str], task_name: str) -> dict[str, SplitSource]:
    splits = {}
    for split, part in wanted.items():
        names = [f"{stem}{ending}" for stem in _STEMS[part] for ending in FORMATS]
        files = [folder / name for name in names if (folder / name).is_file()]
        if len(files) > 1:
            given = ", ".join(map(str, files))
            raise InputError(f"more than one file for the {split} split", given=given, remedy="keep one of them")
        if files:
            splits[split] = file_source(split, files[0], task_name)
    return splits
