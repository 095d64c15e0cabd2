import importlib.util
from pathlib import Path

from pydantic import Field

from kdc.artifact.manifest import Device
from kdc.common.errors import InputError, installing
from kdc.common.frozen import Frozen
from kdc.common.places import STANDARD, File, file_system, find, format_of, is_packed
from kdc.common.records import Dialect


class PredictRequest(Frozen):
    artifact: Path
    source: str  # file, directory, pattern or URL; "-" is JSONL on standard input
    output: str  # "-" is JSONL on standard output; with Ray, a directory of shards
    text: str | None = None  # column; None: the task's
    text_pair: str | None = None  # column
    delimiter: str | None = None  # None: by the ending
    encoding: str | None = None  # of text inputs; None: UTF-8
    prefix: str = ""  # of the new columns
    all_scores: bool = False
    on_error: str = "stop"  # "stop" or "skip" at a bad row
    errors: str | None = None
    max_text_chars: int = Field(200_000, ge=1)
    variant: str | None = None  # None: the manifest's choice
    device: Device = "auto"
    # Of all passes together (None: all usable cores). With Ray, as in `share_out`.
    threads: int | None = Field(None, ge=1)
    force: bool = False  # replace the output, drop an unfinished job
    allow_failed: bool = False
    engine: str = "local"  # "local", or "ray" for a cluster
    address: str | None = None  # None: RAY_ADDRESS, else this machine
    actors: int | None = Field(None, ge=1)  # None: as many as have room

    @property
    def format(self) -> str:
        return "jsonl" if self.output == STANDARD else format_of(self.output)

    def check(self) -> list[File]:
        self._check_options()
        files = [] if self.source == STANDARD else find(self.source, Dialect(self.delimiter, self.encoding))
        uses_parquet = "parquet" in (self.format, *(file.format for file in files))
        self._check_apart(files)
        if uses_parquet and importlib.util.find_spec("pyarrow") is None:
            remedy = f"{installing('predict')}, or use .jsonl"
            raise InputError("Parquet needs pyarrow", given="it is not installed", remedy=remedy)
        return files

    def _check_options(self) -> None:
        if self.on_error not in ("stop", "skip"):
            raise InputError("no such way to treat a bad row", given=self.on_error, remedy="stop or skip")
        if self.errors is not None and self.on_error != "skip":
            raise InputError("--errors names rows that are skipped", given="--on-error stop", remedy="--on-error skip")
        if self.source == STANDARD and (self.delimiter, self.encoding) != (None, None):
            remedy = "leave out --delimiter and --encoding"
            raise InputError("standard input is JSONL in UTF-8", given=STANDARD, remedy=remedy)
        if self.format == "xlsx":
            raise InputError("kdc writes no .xlsx", given=self.output, remedy="name a .csv file")
        if is_packed(self.output):
            remedy = "pack it afterwards, or .parquet"
            raise InputError("the output is not compressed by kdc", given=self.output, remedy=remedy)
        if self.engine not in ("local", "ray"):
            raise InputError("no such engine", given=self.engine, remedy="local or ray")
        if self.engine == "local":
            for name, value in (("--address", self.address), ("--actors", self.actors)):
                if value is not None:
                    raise InputError(f"{name} is for Ray", given=f"{name} {value}", remedy="add --engine ray")
            return
        if STANDARD in (self.source, self.output):
            raise InputError("Ray reads and writes files", given=STANDARD, remedy="name files, or --engine local")
        (source_system, source), (output_system, output) = file_system(self.source), file_system(self.output)
        if source_system.protocol == output_system.protocol and output.startswith(f"{source.rstrip('/')}/"):
            given = f"{self.output} in {self.source}"
            raise InputError("the output would lie inside the input", given=given, remedy="a place beside the input")

    def _check_apart(self, files: list[File]) -> None:
        paths = [(file.system, file.path) for file in files]
        outputs = [address for address in (self.output, self.errors) if address is not None and address != STANDARD]
        paths += map(file_system, outputs)
        resolved = {(tuple(system.protocol), str(Path(path).resolve())) for system, path in paths}
        if len(resolved) < len(paths):
            what = "input, output and errors are not all different files"
            raise InputError(what, given=self.output, remedy="another name")
