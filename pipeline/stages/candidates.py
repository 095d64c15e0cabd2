"""Stage `candidates`: what could keep the contract, measured before anything is trained.

Latency and size do not depend on the weights' values, so every student that could come out (the family's own, the
teacher cut to each depth) is exported untrained, quantised on real rows, and timed by the engine that serves.
Reads `data/`. Writes one record a candidate, so that a stage that is cut off goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import set_seed

from kdc.artifact.contract.decision import missed_costs
from kdc.artifact.contract.terms import Contract, Costs
from kdc.artifact.manifest import TokenizerInfo
from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.settings import Config
from kdc.pipeline.data.served import task_info, texts_of, tokenizer_info
from kdc.pipeline.graphs.fp16 import to_fp16
from kdc.pipeline.graphs.int8 import CANDIDATES, quantise
from kdc.pipeline.graphs.onnx_graph import export_onnx, graph_inputs
from kdc.pipeline.quality.costs import measure, rows_to_time
from kdc.pipeline.quality.variants import judged_device
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.stages.quantize import calibration, smoothed_source
from kdc.pipeline.training import models
from kdc.serving.engine.engine import Engine

_ROUNDS = 3
_TOKENIZER = "tokenizer.json"
_REFUSED = "refused"  # a machine that was busy this time is measured again the next
# The graph that comes out most often; the fastest takes some percent less, all are of the same size.
_INT8 = next(candidate for candidate in CANDIDATES if candidate.name == "channel-smooth")


def run(run: Run, out: Path) -> dict[str, Any]:
    """Measure all candidates in `out`."""
    contract = run.config.contract.terms
    assert contract is not None  # else the stage does not run
    found = {}
    students = students_of(run.config)
    for place, student in enumerate(students):
        record = out / f"{hashlib.sha256(student.encode()).hexdigest()[:16]}.json"
        found[student] = _once(record, lambda student=student: _measure(run, student, contract, out))
        run.progress(place + 1, len(students))
    return {"candidates": found, "headline": f"{len(found)} students measured, none trained"}


def check(run: Run) -> None:
    """Say what can keep the contract, and refuse one that nothing can keep.

    Raises:
        InputError: nothing can; it names what comes nearest.
    """
    contract, found = run.config.contract.terms, run.metrics("candidates")["candidates"]
    assert contract is not None
    for line in table(found, contract):
        run.say(line)
    if not kept(run):
        (run.folder("candidates") / _REFUSED).touch()
        raise _impossible(found, contract)


def is_intact(root: Path) -> bool:
    """Whether the contract was not refused by what was measured."""
    return not (root / "candidates" / _REFUSED).exists()


def kept(run: Run) -> list[str]:
    """Students that can keep the contract in one precision or the other, those with the most parameters first."""
    contract, found = run.config.contract.terms, run.metrics("candidates")["candidates"]
    assert contract is not None
    fitting = [student for student, candidate in found.items() if fits(candidate, contract)]
    return sorted(fitting, key=lambda student: -found[student]["parameters"])


def students_of(config: Config) -> list[str]:
    """Students that could come out; the configured one alone where no search was asked for."""
    own, layers = config.student.model, models.depth(config.teacher.model)
    if own.startswith("layers:"):
        own = _cut(models.parse_layers(own, layers))  # by number, whatever name it was given
    if config.contract.search == "off":
        return [own]
    cuts = [_cut(models.first_and_last(depth, layers)) for depth in range(layers - 1, 0, -1)]
    return cuts if own in cuts else [own, *cuts]


def _cut(layers: list[int]) -> str:
    return "layers:" + ",".join(map(str, layers))


def precisions(run: Run) -> tuple[str, ...]:
    """Those that the run will make and this device loads."""
    if judged_device(run) == "cuda":
        return ("fp32", "fp16") if run.config.export.fp16 else ("fp32",)
    return ("fp32", "int8") if run.config.quantize.enabled else ("fp32",)


def fits(found: Mapping[str, Any], contract: Contract) -> list[str]:
    """Precisions in which a candidate keeps the contract."""
    return [
        name
        for name, costs in found["variants"].items()
        if "failed" not in costs and not missed_costs(contract, Costs(**costs))
    ]


def table(found: Mapping[str, Mapping[str, Any]], contract: Contract) -> list[str]:
    """A line for each candidate and precision: what was measured, and whether it is kept or why not."""
    rows = [("student", "variant", "M params", "ms", "rows/s", "MB", "")]
    for student, candidate in found.items():
        for name, costs in candidate["variants"].items():
            parameters = f"{candidate['parameters'] / 1e6:.1f}"
            if "failed" in costs:
                rows.append((student, name, parameters, "-", "-", "-", f"dropped: {costs['failed']}"))
                continue
            missed = missed_costs(contract, Costs(**costs))
            numbers = (f"{costs['latency_ms']:.2f}", f"{costs['rows_per_s']:.0f}", f"{costs['size_mb']:.1f}")
            rows.append((student, name, parameters, *numbers, "dropped: " + "; ".join(missed) if missed else "kept"))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return [
        "  " + "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[6]]).rstrip()
        for row in rows
    ]


def _once(record: Path, work: Any) -> dict[str, Any]:
    """What the record says, or what the work gives, recorded."""
    if not record.exists():
        temporary = record.with_suffix(".tmp")
        temporary.write_text(json.dumps(work()), encoding="utf-8")
        os.replace(temporary, record)
    return json.loads(record.read_text(encoding="utf-8"))


def _measure(run: Run, student: str, contract: Contract, scratch: Path) -> dict[str, Any]:
    """Parameters, and costs by precision."""
    set_seed(run.config.run.seed)
    cut, role = student.startswith("layers:"), run.role_of(student)
    source = run.config.teacher.model if cut else student
    model = models.load_model(source, run.data().task).model
    if cut:
        model = models.cut(model, models.parse_layers(student, model.config.num_hidden_layers))
    with tempfile.TemporaryDirectory(dir=scratch) as name:  # what a kill leaves goes with the run's own folder
        info = _export(run, model, source, role, Path(name))
        variants = {variant: _costs(run, Path(name), variant, info, role, contract) for variant in precisions(run)}
    return {"parameters": models.count_parameters(model), "variants": variants}


def _export(run: Run, model: Any, source: str, role: str, folder: Path) -> TokenizerInfo:
    """`fp32.onnx` and `tokenizer.json` in the folder."""
    tokenizer = models.load_tokenizer(source)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    tokenizer.backend_tokenizer.save(str(folder / _TOKENIZER), pretty=False)
    typed = "token_type_ids" in run.data().tokens(role, "train").column_names
    export_onnx(folder / "model", folder / "fp32.onnx", exporter=run.config.export.exporter, token_type_ids=typed)
    return tokenizer_info(
        tokenizer,
        max_length=run.metrics("data")["max_length"][role],
        token_type_ids="token_type_ids" in graph_inputs(folder / "fp32.onnx"),
    )


def _costs(run: Run, folder: Path, variant: str, info: TokenizerInfo, role: str, contract: Contract) -> dict[str, Any]:
    """Costs of one precision; why not, where it cannot be had."""
    fp32, file = folder / "fp32.onnx", folder / f"{variant}.onnx"
    try:
        if variant == "int8":
            source = smoothed_source(fp32, calibration(run, info.input_names, role), folder / "smoothed.onnx")
            quantise(source.file, file, _INT8, source.ranges)
        elif variant == "fp16":
            to_fp16(fp32, file)
        engine = Engine.from_files(
            file,
            folder / _TOKENIZER,
            task=task_info(run.data().task),
            tokenizer_info=info,
            device=judged_device(run),
            threads=contract.at.threads,
        )
    except InputError:
        raise
    except KdcError as error:
        return {"failed": f"{error.what} ({error.given})"}
    rows = rows_to_time(engine, texts_of(run.data().rows("tune")), contract.at)
    size = file.stat().st_size + (folder / _TOKENIZER).stat().st_size
    return measure(engine, rows, contract.at, size_bytes=size, rounds=_ROUNDS).model_dump()


def _impossible(found: Mapping[str, Mapping[str, Any]], contract: Contract) -> InputError:
    """Names what comes nearest: the one whose worst miss is the least."""
    limits = contract.limits

    def worst(costs: Costs) -> float:
        shares = [0.0]
        if limits.max_latency_ms is not None:
            shares.append(costs.latency_ms / limits.max_latency_ms)
        if limits.max_size_mb is not None:
            shares.append(costs.size_mb / limits.max_size_mb)
        if limits.min_rows_per_s is not None:
            shares.append(limits.min_rows_per_s / costs.rows_per_s)
        return max(shares)

    made = [
        (student, name, Costs(**costs))
        for student, candidate in found.items()
        for name, costs in candidate["variants"].items()
        if "failed" not in costs
    ]
    if not made:
        return InputError("no candidate could be exported", given=", ".join(found), remedy="see the lines above")
    student, name, costs = min(made, key=lambda each: worst(each[2]))
    possible = {
        "--max-latency-ms": (limits.max_latency_ms, f"{1.1 * costs.latency_ms:.3g}"),
        "--max-size-mb": (limits.max_size_mb, f"{costs.size_mb + 0.1:.1f}"),
        "--min-rows-per-s": (limits.min_rows_per_s, f"{0.9 * costs.rows_per_s:.0f}"),
    }
    asked = " ".join(f"{flag} {value}" for flag, (limit, value) in possible.items() if limit is not None)
    return InputError(
        "nothing that could come out keeps the contract; nothing was trained",
        given=f"the nearest is {student} in {name}: " + "; ".join(missed_costs(contract, costs)),
        remedy=f"ask for what it keeps ({asked}), for a smaller --student, or bring a smaller teacher (--teacher)",
    )
