"""Attacks on `kdc serve` and `kdc.load` by someone who writes an artifact's folder.

Command: `python benchmarks/hostile_folder.py ARTIFACT [--reloads 60] [--seconds 60]`. Needs onnx. Ends with 1 if a
bound is broken:

- `reloads` replaces an artifact repeatedly: memory stays within 40 MB of its value after two reloads.
- `swaps` swaps a forged model in and out while `kdc.load` expects a SHA-256: no load answers with the forged model.
- `pipe` turns a manifest into a named pipe without a writer: another artifact still reloads.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving.mark import Mark, marks_table
from benchmarks.serving.process import Running, running
from benchmarks.serving.servers import Server
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER, MANIFEST_NAME
from kdc.common.errors import KdcError
from kdc.serving.engine.engine import Engine

_GROWN_MB, _PATIENCE_S = 40.0, 60.0
_SETTLED_S = 0.5  # until the old artifact closes
_ROWS = ["a row of words such as others send", "and another one"]


def reloads(artifact: Path, scratch: Path, count: int) -> list[Mark]:
    copies = [_copy(artifact, scratch / f"copy{number}") for number in (0, 1)]
    place, memory = _link(copies[0], scratch / "served"), []
    rows = [[row] * (1 + load_manifest(place).task.is_pair) for row in _ROWS]
    with running(_server(f"a={place}"), scratch / "log") as up:
        for number in range(1, count + 1):
            _link(copies[number % 2], place)
            _until(lambda: (scratch / "log").read_text().count("now serves") == number)  # noqa: B023
            up.ask("/predict", {"inputs": rows})
            time.sleep(_SETTLED_S)
            memory.append(up.resident_mb())
    print(f"resident MB after reloads: {' '.join(f'{value:.0f}' for value in memory)}")
    return [Mark(f"memory after {count} reloads, MB more than after 2", False, _GROWN_MB, memory[-1] - memory[1])]


def swaps(artifact: Path, scratch: Path, seconds: float) -> list[Mark]:
    place = _copy(artifact, scratch / "swapped")
    expected, file = load_manifest(place).sha256, _model_of(place)
    true, copies = _answers(place, expected), (scratch / "true", scratch / "forged")
    for copy in copies:
        shutil.copy(place / file, copy)
    forge(copies[1])
    arguments = (place / file, copies, os.getpid())
    swapping = multiprocessing.get_context("spawn").Process(target=_swap, args=arguments, daemon=True)
    swapping.start()
    loads = wrong = refused = 0
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            loads += 1
            try:
                wrong += not np.allclose(_answers(place, expected), true, atol=1e-5)
            except KdcError:
                refused += 1
    finally:
        swapping.kill()
        swapping.join()
    print(f"{loads} loads, {refused} refused, {wrong} gave answers of the forged file")
    return [
        Mark(f"answers of the forged file in {loads} loads", False, 0, wrong),
        Mark("loads that were refused: the swaps were seen", True, 1, refused),
    ]


def pipe(artifact: Path, scratch: Path) -> list[Mark]:
    copies = [_copy(artifact, scratch / f"hangs{number}") for number in range(3)]
    places = [_link(copy, scratch / f"place{number}") for number, copy in enumerate(copies[:2])]
    (copies[2] / MANIFEST_NAME).unlink()
    os.mkfifo(copies[2] / MANIFEST_NAME)
    with running(_server(f"a={places[0]},b={places[1]}"), scratch / "log-of-pipe") as up:
        _link(copies[2], places[0])
        time.sleep(1)
        began = time.monotonic()
        _link(_copy(artifact, scratch / "another"), places[1])
        _until(lambda: "b: now serves" in (scratch / "log-of-pipe").read_text())
        return [
            Mark("seconds until the other artifact was reloaded", False, 10, time.monotonic() - began),
            Mark("the metric tells of the one that cannot be read", True, 1, _refused(up, "a")),
        ]


def forge(path: Path) -> None:
    """Change a tensor, but not the file's length."""
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.raw_data = largest.raw_data[::-1]
    path.write_bytes(model.SerializeToString())


def _server(artifacts: str) -> Server:
    command = [sys.executable, "-m", "kdc", "serve", artifacts, "--device", "cpu", "--port"]
    settings = {"KDC_DRAIN_DELAY_S": "0", "KDC_RELOAD_S": "0.1"}
    return Server("kdc", lambda port: [*command, str(port)], "/health", None, settings)


def _copy(artifact: Path, to: Path) -> Path:
    shutil.copytree(artifact, to)
    return to


def _link(target: Path, at: Path) -> Path:
    temporary = at.with_suffix(".new")
    temporary.symlink_to(target)
    return temporary.replace(at)


def _swap(place: Path, copies: tuple[Path, Path], parent: int) -> None:
    dice, new = np.random.default_rng(0), copies[0].with_name("swapping")
    while os.getppid() == parent:
        for copy in copies:
            new.unlink(missing_ok=True)  # a link to `place`'s file would not be renamed
            new.hardlink_to(copy)
            new.replace(place)
            time.sleep(dice.uniform(0, 0.05))


def _answers(place: Path, expected: str) -> np.ndarray:
    with Engine.load(place, device="cpu", threads=2, lanes=2, expect_sha256=expected) as engine:
        encodings = engine.encode([(row, row) if engine.task.is_pair else row for row in _ROWS])
        return np.concatenate([engine.run(encodings), engine.run_beside(encodings)])


def _model_of(artifact: Path) -> str:
    manifest = load_manifest(artifact, verify=False)
    return {str(name): each.file for name, each in manifest.variants.items()}[manifest.providers[CPU_PROVIDER]]


def _refused(up: Running, name: str) -> bool:
    metrics = httpx2.get(f"http://127.0.0.1:{up.port}/metrics").text
    return f'kdc_artifact_refused{{model="{name}"}} 1.0' in metrics


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise KdcError("it did not happen", given=f"within {_PATIENCE_S:g} s")
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--reloads", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=60, help="of the swaps")
    parser.add_argument("--only", help="names of attacks, separated by commas")
    options = parser.parse_args()
    attacks: dict[str, Callable[[Path, Path], list[Mark]]] = {
        "reloads": lambda artifact, scratch: reloads(artifact, scratch, options.reloads),
        "swaps": lambda artifact, scratch: swaps(artifact, scratch, options.seconds),
        "pipe": pipe,
    }
    names = list(attacks) if options.only is None else options.only.split(",")
    if unknown := sorted(set(names) - set(attacks)):
        parser.error(f"no such attacks: {', '.join(unknown)}; there are {', '.join(attacks)}")
    marks = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                marks += attacks[name](options.artifact.resolve(), Path(scratch))
            except KdcError as error:
                print(f"{name}: {error}")
                marks.append(Mark(f"{name}: it ended", True, 1, 0))
    print("\n" + marks_table(marks))
    sys.exit(0 if all(mark.holds for mark in marks) else 1)


if __name__ == "__main__":
    main()
