"""Stage `candidates`: which students can keep the contract, before any training.

Latency and size do not depend on weights, so kdc exports, quantises and times untrained students. If size is limited,
it also tries a smaller vocabulary. Reads `data/`, `vocabulary/`. Writes a record per student.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed

from kdc.artifact.contract.terms import Contract, Costs
from kdc.common.errors import InputError, KdcError
from kdc.common.files import write_whole
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.student_kinds import KINDS, StudentKind, kind_of
from kdc.pipeline.config.training_settings import StudentSettings
from kdc.pipeline.data.prepared import texts_of
from kdc.pipeline.graphs.exporting import write_graph
from kdc.pipeline.graphs.files import FP32_ONNX, TOKENIZER_JSON
from kdc.pipeline.graphs.fp16 import to_fp16
from kdc.pipeline.graphs.int8 import CANDIDATES, quantise
from kdc.pipeline.graphs.int8_storage import VectorBits
from kdc.pipeline.graphs.parity import Feeds
from kdc.pipeline.graphs.ranges import sample_batches
from kdc.pipeline.graphs.smoothing import make_source
from kdc.pipeline.models import loading
from kdc.pipeline.models.opening import as_served
from kdc.pipeline.quality.feasibility import fitting_students, nothing_fits, table
from kdc.pipeline.quality.judging import judged_device
from kdc.pipeline.quality.latency import measure_costs, rows_to_time
from kdc.pipeline.results.training import CandidatesResult, NotMeasured, StudentCosts
from kdc.pipeline.rundir.context import Run
from kdc.pipeline.rundir.fingerprints import this_machine
from kdc.pipeline.training.student_checks import has_graph
from kdc.pipeline.training.students import new_student
from kdc.serving.engine.engine import Engine
from kdc.serving.engine.tokenizing import Text

_ROUNDS = 3
_REFUSED = "refused"  # the next run measures again: the machine may have been busy
# Usually the winner, or about as fast and small.
_INT8 = next(candidate for candidate in CANDIDATES if candidate.name == "channel-smooth")


def depends_on(run: Run) -> dict[str, Any]:
    """New limits need no new measurements."""
    config, bits = run.config, run.config.quantize.vector_bits
    return {
        **config.contract.at.model_dump(),
        "students": students_of(config),
        "precisions": _precisions(run.device, fp16=config.export.fp16, int8=config.quantize.enabled),
        "calibration_rows": config.quantize.calibration_rows,
        "exporter": config.export.exporter,
        "int8_bits": [8, 4] if bits == "auto" else [bits],
        **({"vocabulary": run.fingerprints["vocabulary"]} if config.makes_vocabulary else {}),
        **this_machine(run.device),
    }


def run(run: Run, out: Path) -> CandidatesResult:
    contract = run.config.contract.terms
    assert contract is not None
    measured, students = {}, students_of(run.config)
    for number, student in enumerate(students, 1):
        record = out / f"{hashlib.sha256(student.encode()).hexdigest()[:16]}.json"
        if not record.exists():
            settings = run.config.student.of(student)
            measure = partial(_measure, run, contract=contract, scratch=out)
            costs = measure(settings)
            if run.tries_fewer_pieces and settings.kind.is_of_teacher:
                fewer = _with_fewer_pieces(measure, settings, run.say)
                costs = costs.model_copy(update={"fewer_pieces": fewer})
            write_whole(record, costs.model_dump_json(exclude_unset=True))
        measured[student] = StudentCosts.model_validate_json(record.read_text(encoding="utf-8"))
        run.progress(number, len(students))
    return CandidatesResult(candidates=measured, headline=f"{len(measured)} students measured, none trained")


def _with_fewer_pieces(
    measure: Callable[[StudentSettings], StudentCosts], settings: StudentSettings, say: Callable[[str], None]
) -> StudentCosts | None:
    try:
        return measure(settings.model_copy(update={"vocabulary": "auto"}))
    except (KdcError, StrictDataclassError) as error:  # a config may demand lost pieces
        say(f"{settings.model} is not tried with fewer pieces: {str(error).splitlines()[0]}")
        return None


def check(run: Run) -> None:
    """Raise InputError if no student keeps the contract."""
    contract, measured = run.config.contract.terms, run.result(CandidatesResult).candidates
    assert contract is not None
    for line in table(measured, contract):
        run.say(line)
    if not fitting_students(measured, contract):
        (run.folder("candidates") / _REFUSED).touch()
        raise nothing_fits(measured, contract, has_whole=run.config.student.vocabulary == "all")


def is_intact(root: Path) -> bool:
    return not (root / "candidates" / _REFUSED).exists()


def students_of(config: Config) -> list[str]:
    own = config.student.kind.canonical(config.student.model, config.teacher.model)
    if config.contract.search == "off":
        return [own]
    kinds = _kinds_beside(config.student.kind, has_whole=config.has_one_teacher)
    possible = [spec for kind in kinds for spec in kind.tried(config.teacher.model)]
    return _with_graph(possible if own in possible else [own, *possible], config.teacher.model)


def curve_of(config: Config) -> list[str]:
    own = config.student.kind.canonical(config.student.model, config.teacher.model)
    kinds = _kinds_beside(config.student.kind, has_whole=config.has_one_teacher)
    curve = [spec for kind in kinds for spec in kind.curve(config.teacher.model)]
    return _with_graph(list(dict.fromkeys([own, *curve])), config.teacher.model)


def _kinds_beside(own: StudentKind, *, has_whole: bool) -> list[StudentKind]:
    kinds = [kind for kind in KINDS.values() if kind.is_trained or has_whole]
    return [kind for kind in kinds if own.has_layers or not (kind.has_layers and kind.is_trained)]


def _with_graph(students: list[str], teacher: str) -> list[str]:
    if has_graph(loading.load_config(teacher)):
        return students
    return [student for student in students if not (kind_of(student).has_layers and kind_of(student).is_of_teacher)]


def _precisions(training_device: str, *, fp16: bool, int8: bool) -> tuple[str, ...]:
    if judged_device(training_device) == "cuda":
        return ("fp32", "fp16") if fp16 else ("fp32",)
    return ("fp32", "int8") if int8 else ("fp32",)


def _measure(run: Run, settings: StudentSettings, contract: Contract, scratch: Path) -> StudentCosts:
    config, data, role, vocabulary = run.config, run.data(), run.role_of(settings), run.vocabulary_of(settings)
    seed, max_length = config.run.seed, run.max_length(role)
    set_seed(seed)
    loaded, source = new_student(settings.model, data.task, cut_from=config.teacher.model, vocabulary=vocabulary)
    model = as_served(loaded.model)
    tokens, texts = data.tokens(role, "train"), texts_of(data.rows("tune"))
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder, exporter, long = Path(name), config.export.exporter, config.long.of(max_length)
        model.save_pretrained(folder / "model")
        loading.load_tokenizer(source, config.data.prefix).save_pretrained(folder / "model")
        _, info = write_graph(
            folder / "model", folder, exporter=exporter, is_pair=data.task.is_pair, max_length=max_length, long=long
        )
        batches = partial(sample_batches, tokens, info.input_names, rows=config.quantize.calibration_rows, seed=seed)
        open_engine = partial(
            Engine.from_files,
            tokenizer_json=folder / TOKENIZER_JSON,
            task=data.task.info(),
            tokenizer_info=info,
            device=judged_device(run.device),
            threads=contract.at.threads,
        )
        variants: dict[str, Costs | NotMeasured] = {}
        in_4_bits: Costs | None = None
        for variant in _precisions(run.device, fp16=config.export.fp16, int8=config.quantize.enabled):
            try:
                files = _converted(folder, variant, batches, config.quantize.vector_bits)
                variants[variant], *smaller = [_costs_of(open_engine(file), file, contract, texts) for file in files]
                in_4_bits = smaller[0] if smaller else in_4_bits
            except InputError:
                raise
            except KdcError as error:
                variants[variant] = NotMeasured(failed=f"{error.what} ({error.given})")
    return StudentCosts(parameters=model.num_parameters(), variants=variants, int8_4_bits=in_4_bits)


def _costs_of(engine: Engine, file: Path, contract: Contract, texts: Sequence[Text]) -> Costs:
    """Medians only: a busy machine must not let an impossible contract through."""
    size = file.stat().st_size + (file.parent / TOKENIZER_JSON).stat().st_size
    timed = rows_to_time(engine, texts, contract.at)
    costs = measure_costs(engine, timed, contract, size_bytes=size, rounds=_ROUNDS)
    return costs.model_copy(update={"latency_interval": None, "rows_interval": None, "starved": 0.0})


def _converted(
    folder: Path,
    variant: str,
    calibration_batches: Callable[[], list[Feeds]],
    bits: VectorBits | Literal["auto"],
) -> list[Path]:
    """With bits "auto", int8 has a second file with 4-bit vectors."""
    fp32, file = folder / FP32_ONNX, folder / f"{variant}.onnx"
    if variant == "fp32":
        return [fp32]
    if variant == "fp16":
        to_fp16(fp32, file)
        return [file]
    source = make_source(fp32, calibration_batches(), smoothed_file=folder / "smoothed.onnx")
    quantise(source.file, file, _INT8, source.ranges, vector_bits=8 if bits == "auto" else bits)
    if bits != "auto":
        return [file]
    smaller = folder / "smaller.onnx"
    quantise(source.file, smaller, _INT8, source.ranges, vector_bits=4)
    return [file, smaller]
