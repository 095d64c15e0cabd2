"""Stage `candidates`: what could keep the contract, measured before anything is trained.

Latency and size do not depend on the weights' values, so every student that could come out (the family's own, the
teacher cut to each depth) is exported untrained, quantised on real rows, and timed by the engine that serves.
Reads `data/`. Writes one record a candidate, so that a stage that is cut off goes on.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from contract.costs import measure, rows_to_time
from contract.terms import Contract, Costs
from contract.verdict import missed_costs
from errors import InputError, KdcError
from pipeline import models
from pipeline.context import Run
from pipeline.graphs.int8 import CANDIDATES, activations, quantise
from pipeline.graphs.onnx_graph import export_onnx, graph_inputs
from pipeline.graphs.ranges import calibration_batches, collect_ranges
from pipeline.served import task_info, texts_of, tokenizer_info
from pipeline.settings import Config
from serving.engine import Engine

_ROUNDS = 3
_INT8 = CANDIDATES[0]  # the fastest graph; the others cost more time and are of the same size


def run(run: Run, out: Path) -> dict[str, Any]:
    """Measure all candidates in `out`, and refuse a contract that none can keep."""
    contract = run.config.contract.terms
    assert contract is not None  # else the stage does not run
    found = {}
    students = students_of(run.config)
    for place, student in enumerate(students):
        found[student] = _once(out / f"{place}.json", lambda student=student: _measure(run, student, contract))
        run.progress(place + 1, len(students))
    for line in table(found, contract):
        run.say(line)
    kept = [student for student in students if fits(found[student], contract)]
    if not kept:
        raise _impossible(found, contract)
    return {
        "candidates": found,
        "kept": kept,
        "headline": f"{len(kept)} of {len(students)} students can keep the contract",
    }


def students_of(config: Config) -> list[str]:
    """Students that could come out, the largest first; the configured one alone where no search was asked for."""
    own = config.student.model
    if config.contract.search == "off":
        return [own]
    layers = int(getattr(models.load_config(config.teacher.model), "num_hidden_layers", 0))
    cuts = ["layers:" + ",".join(map(str, range(depth))) for depth in range(layers - 1, 0, -1)]
    return cuts if own.startswith("layers:") else [own, *cuts]


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


def _measure(run: Run, student: str, contract: Contract) -> dict[str, Any]:
    """Parameters, and costs by precision."""
    set_seed(run.config.run.seed)
    task, cut = run.data().task, student.startswith("layers:")
    source = run.config.teacher.model if cut else student
    model = models.load_model(source, task).model
    if cut:
        model = models.cut(model, models.parse_layers(student, model.config.num_hidden_layers))
    found: dict[str, Any] = {"parameters": models.count_parameters(model), "variants": {}}
    with tempfile.TemporaryDirectory(prefix="kdc-") as name:
        scratch = Path(name)
        model.save_pretrained(scratch / "model")
        tokenizer = models.load_tokenizer(source)
        tokenizer.save_pretrained(scratch / "model")
        tokenizer.backend_tokenizer.save(str(scratch / "tokenizer.json"), pretty=False)
        role = run.role_of(student)
        tokens = run.data().tokens(role, "train")
        typed = "token_type_ids" in tokens.column_names
        fp32, int8 = scratch / "fp32.onnx", scratch / "int8.onnx"
        export_onnx(scratch / "model", fp32, exporter=run.config.export.exporter, token_type_ids=typed)
        info = tokenizer_info(
            tokenizer, max_length=run.metrics("data")["max_length"][role],
            token_type_ids="token_type_ids" in graph_inputs(fp32),
        )  # fmt: skip
        count = min(run.config.quantize.calibration_rows, len(tokens))
        chosen = np.random.default_rng(run.config.run.seed).permutation(len(tokens))[:count]
        for variant, file in (("fp32", fp32), ("int8", int8)):
            try:
                if variant == "int8":
                    batches = calibration_batches([tokens[int(row)] for row in chosen], info.input_names)
                    quantise(fp32, int8, _INT8, collect_ranges(fp32, activations(fp32), batches))
                engine = Engine.from_files(
                    file, scratch / "tokenizer.json", task=task_info(task), tokenizer_info=info,
                    threads=contract.at.threads,
                )  # fmt: skip
            except InputError:
                raise
            except KdcError as error:  # this precision cannot be had; the other may do
                found["variants"][variant] = {"failed": f"{error.what} ({error.given})"}
                continue
            rows = rows_to_time(engine, texts_of(run.data().rows("tune")), contract.at)
            size = file.stat().st_size + (scratch / "tokenizer.json").stat().st_size
            costs = measure(engine, rows, contract.at, size_bytes=size, rounds=_ROUNDS)
            found["variants"][variant] = costs.model_dump()
    return found


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
    return InputError(
        "nothing that could come out keeps the contract; nothing was trained",
        given=f"the nearest is {student} in {name}: " + "; ".join(missed_costs(contract, costs)),
        remedy="ask for what it keeps, "
        f"--max-latency-ms {1.1 * costs.latency_ms:.2g} --max-size-mb {costs.size_mb + 0.1:.1f}, "
        "or bring a smaller teacher (--teacher)",
    )
