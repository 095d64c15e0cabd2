"""The command line `kdc`: parse, build a config, make one call. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdc.common.errors import InputError, KdcError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make large text classifiers small, fast and provably good, and serve them.",
)

_OWN = "Data of your own"
_MODELS = "Models"
_CONTRACT = "Contract: what the artifact must keep (exit code 3: it does not, 4: not shown)"
_FLOW = "Which stages run"
_LIMITS = "Limits"
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; everything else goes to stderr.")]
Artifact = Annotated[Path, typer.Argument(help="Folder of an artifact, e.g. runs/qnli/artifact.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def _option(panel: str | None, *names: str, text: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)


# What a contract asks, to compress to it or to judge it again.
MaxLatency = Annotated[float | None, _option(_CONTRACT, text="Of one call, see --at.")]
MaxSize = Annotated[float | None, _option(_CONTRACT, text="Of the ONNX file and tokenizer.json.")]
MaxDrop = Annotated[float | None, _option(_CONTRACT, text="Points that the student may be below its teacher.")]
MinRows = Annotated[float | None, _option(_CONTRACT, text="In batches of 32 rows.")]
At = Annotated[str | None, _option(_CONTRACT, text="length=64,batch=1,percentile=95,threads=2, any of them.")]
Evidence = Annotated[str | None, _option(_CONTRACT, text="interval (default), or point: the difference alone.")]
Confidence = Annotated[float | None, _option(_CONTRACT, text="Of the interval (default 0.95).")]


@app.command()
def compress(
    task: Annotated[str | None, _option(None, text="A GLUE task or pydocs: see `kdc tasks`.")] = None,
    data: Annotated[Path | None, _option(None, text="Local data: GLUE's folder, save_to_disk, or files.")] = None,
    family: Annotated[str | None, _option(_MODELS, text="bert, roberta, deberta or minilm.")] = None,
    recipe: Annotated[str | None, _option(_MODELS, text="best (default) or paper.")] = None,
    teacher: Annotated[
        list[str] | None, _option(_MODELS, text="Hub id or path; several are averaged, cut from the first.")
    ] = None,
    teacher_scores: Annotated[
        Path | None, _option(_MODELS, text="A black box's answers to all rows, in a teacher's place.")
    ] = None,
    teacher_is_finetuned: Annotated[
        bool | None, _option(_MODELS, "--teacher-is-finetuned", text="Only check the teacher, train nothing on it.")
    ] = None,
    teacher_labels: Annotated[str | None, _option(_MODELS, text="Names for a LABEL_0 teacher: neg,pos.")] = None,
    student: Annotated[str | None, _option(_MODELS, text="Hub id, path, or layers:0,1,5.")] = None,
    controls: Annotated[
        bool | None, _option(_MODELS, "--controls", text="Also the student without KD, and the teacher with LoRA.")
    ] = None,
    train: Annotated[Path | None, _option(_OWN, text="Training file: .csv .tsv .jsonl .parquet.")] = None,
    eval_: Annotated[Path | None, _option(_OWN, "--eval", text="Evaluation file (default: a held-out tenth).")] = None,
    unlabeled: Annotated[Path | None, _option(_OWN, text="Further texts that only the teacher labels.")] = None,
    text: Annotated[str | None, _option(_OWN, text="Column with the text.")] = None,
    text_pair: Annotated[str | None, _option(_OWN, text="Column with the second text of a pair.")] = None,
    label: Annotated[str | None, _option(_OWN, text="Column with the label.")] = None,
    kind: Annotated[str | None, _option(_OWN, text="classification, multilabel or regression.")] = None,
    separator: Annotated[str | None, _option(_OWN, text="Separator of the labels in a multi-label cell.")] = None,
    max_train_rows: Annotated[int | None, _option(None, text="At most that many rows to train on.")] = None,
    epochs: Annotated[float | None, _option(None, text="Passes over the rows, teacher and student.")] = None,
    seed: Annotated[int | None, _option(None, text="Seed (default 0).")] = None,
    device: Annotated[str | None, _option(None, text="auto, cpu or cuda.")] = None,
    max_int8_drop: Annotated[float | None, _option(None, text="Points that int8 may cost (default 1.0).")] = None,
    max_latency_ms: MaxLatency = None,
    max_size_mb: MaxSize = None,
    max_drop: MaxDrop = None,
    min_rows_per_s: MinRows = None,
    at: At = None,
    evidence: Evidence = None,
    confidence: Confidence = None,
    search: Annotated[
        str | None, _option(_CONTRACT, text="quick (default), full or off: try several students.")
    ] = None,
    max_hours: Annotated[float | None, _option(_CONTRACT, text="Of the search.")] = None,
    out: Annotated[Path | None, _option(None, text="Run directory (default runs/<task>).")] = None,
    no_examples: Annotated[bool | None, _option(None, "--no-examples", text="A report that quotes no rows.")] = None,
    config: Annotated[Path | None, _option(None, text="TOML file with settings: see `kdc config`.")] = None,
    set_: Annotated[list[str] | None, _option(None, "--set", text="section.key=value, repeatable.")] = None,
    from_: Annotated[str | None, _option(_FLOW, "--from", text="Redo from this stage on.")] = None,
    until: Annotated[str | None, _option(_FLOW, text="Stop after this stage.")] = None,
    force: Annotated[bool, _option(_FLOW, "--force", text="Redo all stages.")] = False,
    as_json: Json = False,
) -> None:
    """From a labelled task to a verified ONNX artifact. The same command again goes on where it was cut off."""
    from kdc.artifact.contract.parse import parse_conditions
    from kdc.pipeline.config import resolve as settings

    flags = settings.layer_of(
        {
            "data.task": task,
            "data.data": data,
            "data.train": train,
            "data.eval": eval_,
            "data.unlabeled": unlabeled,
            "data.text": text,
            "data.text_pair": text_pair,
            "data.label": label,
            "data.kind": kind,
            "data.separator": separator,
            "data.max_train_rows": max_train_rows,
            "run.family": family,
            "run.recipe": recipe,
            "run.out": out,
            "run.seed": seed,
            "run.device": device,
            "run.controls": controls,
            "teacher.model": teacher[0] if teacher else None,
            "teacher.more": tuple(teacher[1:]) if teacher and len(teacher) > 1 else None,
            "teacher.scores": teacher_scores,
            "teacher.finetuned": teacher_is_finetuned,
            "teacher.labels": teacher_labels,
            "teacher.epochs": epochs,
            "student.model": student,
            "student.epochs": epochs,
            "quantize.max_int8_drop": max_int8_drop,
            "report.examples": None if no_examples is None else not no_examples,
            "contract.max_latency_ms": max_latency_ms,
            "contract.max_size_mb": max_size_mb,
            "contract.max_drop": max_drop,
            "contract.min_rows_per_s": min_rows_per_s,
            "contract.evidence": evidence,
            "contract.confidence": confidence,
            "contract.search": search,
            "contract.max_hours": max_hours,
            **{f"contract.at.{name}": value for name, value in parse_conditions(at).items()},
        }
    )
    resolved = settings.resolve(
        flags=flags, sets=settings.parse_sets(set_ or []), file=settings.read_file(config) if config else {}
    )
    from kdc.pipeline.compress import compress_for_people

    result = compress_for_people(resolved, start_from=from_, until=until, force=force)
    if not result:  # a process that torchrun started beside the one that tells
        return
    if as_json:
        _print_json(result)
    else:
        from kdc.pipeline.report.printing import print_result

        print_result(result)
    _leave(result.get("result", {}).get("contract"))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Directory of a finished `kdc compress`.", show_default=False)],
    no_examples: Annotated[bool, typer.Option("--no-examples", help="Quote no rows.")] = False,
    as_json: Json = False,
) -> None:
    """The proof as a page: report.html, report.json and report.md in the run's directory."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kdc.pipeline.report.page import write_report

    facts = write_report(run, examples=not no_examples)
    _print_json(facts) if as_json else typer.echo(f"{facts['verdict']}\nreport: {run / 'report.html'}")


@app.command()
def bench(
    subjects: Annotated[
        list[str],
        typer.Argument(help="[NAME=]PATH[@VARIANT]: artifacts, or folders of Hugging Face models.", show_default=False),
    ],
    batch: Annotated[str, typer.Option(help="Rows a call, separated by commas.")] = "1,8,32",
    length: Annotated[str, typer.Option(help="Tokens a row, separated by commas.")] = "16,64,128",
    rounds: Annotated[int, typer.Option(help="Turns of every subject at every case.", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="Of a turn.", min=0.01)] = 0.5,
    threads: Annotated[int | None, _option(None, text="Of a call (default: all cores that may be used).")] = None,
    device: Device = "auto",
    plot: Annotated[Path | None, _option(None, text="Also a picture: FILE.svg, .png or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Latency, throughput, cold start and memory, side by side, the first one the measure of the others."""
    from kdc.common.progress import Reporter
    from kdc.tools import bench as benchmark
    from kdc.tools.bench import text

    if plot is not None:
        from kdc.tools.bench.plot import check_format

        check_format(plot)
    cases = [
        benchmark.Case(rows, tokens) for tokens in _numbers("--length", length) for rows in _numbers("--batch", batch)
    ]
    parsed = [benchmark.parse_subject(subject) for subject in subjects]
    reporter = Reporter()
    reporter.started("bench", "loads every subject three times")
    try:
        found = benchmark.run_bench(
            parsed,
            cases,
            rounds=rounds,
            seconds=seconds,
            device=_device(device),
            threads=threads,
            progress=reporter.progress,
        )
    finally:
        reporter.stop()
    if plot is not None:
        from kdc.tools.bench.plot import draw

        draw(found, plot)
    _print_json(found) if as_json else typer.echo(text.render(found))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def _numbers(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and least <= int(part) <= 100_000 for part in parts):
        raise InputError(f"{option} is not a list of whole numbers from {least} on", given=text, remedy="e.g. 1,8,32")
    return tuple(int(part) for part in parts)


@app.command()
def study(
    tasks: Annotated[str, _option(None, text="GLUE tasks or pydocs, separated by commas.")],
    out: Annotated[Path, _option(None, text="Directory of the study.")],
    families: Annotated[str, typer.Option(help="Of bert, roberta, deberta, minilm.")] = "bert,roberta,deberta",
    methods: Annotated[
        str, typer.Option(help="Of fft, lora (the teacher), kd-lora, student-lora, student-fft.")
    ] = "fft,lora,kd-lora,student-lora,student-fft",
    ranks: Annotated[str, typer.Option(help="Of the adapters.")] = "8",
    seeds: Annotated[str, typer.Option(help="One run of everything for each.")] = "1,2,3",
    recipe: Annotated[str, typer.Option(help="paper or best.")] = "paper",
    data: Annotated[Path | None, _option(None, text="Local data in GLUE's layout; default: the hub.")] = None,
    max_train_rows: Annotated[int | None, _option(None, text="At most that many rows to train on.")] = None,
    epochs: Annotated[float | None, _option(None, text="Passes over the rows, teacher and student.")] = None,
    device: Annotated[str | None, _option(None, text="auto, cpu or cuda.")] = None,
    engine: Annotated[str, typer.Option(help="local: one cell after the other; ray: side by side.")] = "local",
    address: Annotated[str | None, _option(None, text="Of a Ray cluster, or auto (default: this machine).")] = None,
    threads: Annotated[int | None, typer.Option(help="Of a cell; with ray also its cores (there 1).", min=1)] = None,
    set_: Annotated[list[str] | None, _option(None, "--set", text="section.key=value of every cell.")] = None,
    as_json: Json = False,
) -> None:
    """The paper's tables: a grid of trainings, beside the published figures. Goes on where it was cut off."""
    from kdc.tools.study.study import study_for_people

    flags = {
        "run.recipe": recipe,
        "data.data": data,
        "data.max_train_rows": max_train_rows,
        "teacher.epochs": epochs,
        "student.epochs": epochs,
        "run.device": device,
    }
    result = study_for_people(
        tasks=_names(tasks),
        families=_names(families),
        methods=_names(methods),
        ranks=_numbers("--ranks", ranks),
        seeds=_numbers("--seeds", seeds, least=0),
        out=out,
        given=tuple(set_ or ()),
        flags={key: value for key, value in flags.items() if value is not None},
        engine=engine,
        address=address,
        threads=threads,
    )
    _print_json(result) if as_json else typer.echo("\n".join(result["files"]))
    if result["failed"]:
        raise KdcError(
            "some cells failed", given="; ".join(result["failed"]), remedy="the same command tries them again"
        )


@app.command(name="try")
def try_(
    artifact: Artifact,
    text: Annotated[str, typer.Argument(help="The text.", show_default=False)],
    pair: Annotated[str | None, typer.Argument(help="The second text of a pair task.", show_default=False)] = None,
    variant: Annotated[str | None, typer.Option(help="fp32, int8 or fp16 (default: the manifest's choice).")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """One prediction."""
    from kdc.serving.engine.engine import Engine

    engine = Engine.load(artifact, variant=variant, device=_device(device))
    (answer,) = engine.predict([text if pair is None else (text, pair)])
    scores = [
        {"label": name, "score": float(score)} for name, score in zip(engine.labels or ("score",), answer, strict=True)
    ]
    scores.sort(key=lambda entry: -float(entry["score"]))  # type: ignore[arg-type]
    if as_json:
        _print_json({"scores": scores, "variant": engine.variant, "provider": engine.provider})
        return
    width = max(len(str(entry["label"])) for entry in scores)
    for entry in scores:
        bar = "" if not engine.labels else "  " + "#" * round(40 * float(entry["score"]))  # type: ignore[arg-type]
        typer.echo(f"{entry['label']!s:<{width}}  {entry['score']:.4f}{bar}")


@app.command()
def serve(
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(help="[NAME=]PATH, or an address as in pull; default: newest in runs/.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option(help="Name or IP address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.", min=1, max=65535)] = 3000,
    workers: Annotated[int | None, _option(None, text="Processes that share the port (default 1).")] = None,
    device: Annotated[str | None, _option(None, text="auto (default), cpu, cuda or tensorrt.")] = None,
    variant: Annotated[str | None, _option(None, text="fp32, int8 or fp16 (default: the manifest's choice).")] = None,
    threads: Annotated[int | None, _option(None, text="Of all forward passes (default: the cores / workers).")] = None,
    api_key_env: Annotated[str | None, _option(None, text="Variable that holds the bearer token.")] = None,
    allow_failed: Annotated[
        bool | None, _option(None, "--allow-failed", text="Also an artifact that failed its contract.")
    ] = None,
    drain_delay: Annotated[float | None, _option(None, text="Seconds of answering 503 on SIGTERM (default 2).")] = None,
    max_body_bytes: Annotated[int | None, _option(_LIMITS, text="Of a request (default 2 MiB).")] = None,
    max_bodies_bytes: Annotated[int | None, _option(_LIMITS, text="Of all in work (default 128 MiB).")] = None,
    max_text_chars: Annotated[int | None, _option(_LIMITS, text="Characters of a text (default 200000).")] = None,
    max_texts: Annotated[int | None, _option(_LIMITS, text="Texts of a request (default 1024).")] = None,
    max_queue_tokens: Annotated[int | None, _option(_LIMITS, text="Tokens that may wait (default 65536).")] = None,
    max_queue: Annotated[float | None, _option(_LIMITS, text="Seconds of waiting (default 1).")] = None,
    max_batch_tokens: Annotated[int | None, _option(_LIMITS, text="Of a forward pass (default: 256 on a CPU).")] = None,
    max_requests: Annotated[int | None, _option(_LIMITS, text="At the same time (default 1024).")] = None,
    timeout: Annotated[float | None, _option(_LIMITS, text="Seconds of a request (default 10).")] = None,
) -> None:
    """Serve artifacts over HTTP. Every option is a KDC_* variable too, and all are in docs/serving.md."""
    # A container's first process misses signals that it has no handler for, and the imports take seconds. At once: an
    # exception that is raised while a C extension is imported comes out as an ImportError.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from kdc.serving import launch
    from kdc.serving.http import settings

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # from here on there may be something to clean up

    if not artifacts and not os.environ.get("KDC_ARTIFACT"):
        artifacts = [str(launch.newest_artifact())]
    given = {
        "artifact": ",".join(artifacts or []) or None,
        "workers": workers,
        "device": device,
        "variant": variant,
        "threads": threads,
        "api_key_env": api_key_env,
        "drain_delay_s": drain_delay,
        "max_body_bytes": max_body_bytes,
        "max_bodies_bytes": max_bodies_bytes,
        "max_text_chars": max_text_chars,
        "max_texts": max_texts,
        "max_queue_tokens": max_queue_tokens,
        "max_queue_s": max_queue,
        "max_batch_tokens": max_batch_tokens,
        "max_requests": max_requests,
        "timeout_s": timeout,
        "allow_failed": allow_failed,
    }
    resolved = settings.resolve(given)
    launch.serve(resolved.model_copy(update={"artifact": launch.absolute(resolved.artifact)}), host, port)


@app.command()
def predict(
    artifact: Artifact,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="File, directory, pattern or URL; - is JSONL.", show_default=False)
    ],
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help=".parquet, .jsonl, .csv, .tsv; - is JSONL.", show_default=False)
    ],
    text: Annotated[str | None, _option(None, text="Column with the text, if it is named otherwise.")] = None,
    text_pair: Annotated[str | None, _option(None, text="Column with the second text, likewise.")] = None,
    prefix: Annotated[str, typer.Option(help="Before the names of the new columns.")] = "",
    all_scores: Annotated[bool, _option(None, "--all-scores", text="A column for each class.")] = False,
    on_error: Annotated[str, typer.Option(help="What a row without a text does: stop, or skip.")] = "stop",
    errors: Annotated[str | None, _option(None, text="File that names the skipped rows (JSONL).")] = None,
    variant: Annotated[str | None, typer.Option(help="fp32, int8 or fp16 (default: the manifest's choice).")] = None,
    device: Device = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Of all passes (default: all cores); with ray of an actor (1).", min=1)
    ] = None,
    engine: Annotated[str, typer.Option(help="local: this process; ray: actors, OUTPUT is a directory.")] = "local",
    address: Annotated[str | None, _option(None, text="Of a Ray cluster, or auto (default: this machine).")] = None,
    actors: Annotated[int | None, typer.Option(help="Of Ray (default: all cores or GPUs).", min=1)] = None,
    force: Annotated[bool, _option(None, "--force", text="Replace the output, drop an unfinished job.")] = False,
    allow_failed: Annotated[
        bool, _option(None, "--allow-failed", text="Also with an artifact that failed its contract.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Label and score a table of any size: columns stay, label and score join them. Goes on where it was cut off."""
    from kdc.serving.bulk.predict import predict_for_people

    found = predict_for_people(
        artifact,
        source,
        output,
        text=text,
        text_pair=text_pair,
        prefix=prefix,
        all_scores=all_scores,
        on_error=on_error,
        errors=errors,
        variant=variant,
        device=_device(device),
        threads=threads,
        force=force,
        allow_failed=allow_failed,
        engine=engine,
        address=address,
        actors=actors,
    )
    if as_json and output != "-":
        _print_json(found)
    else:
        sys.stderr.write(_told(found))


def _told(found: dict[str, Any]) -> str:
    resumed = f", {found['resumed']:,} of them before" if found["resumed"] else ""
    skipped = f", {found['skipped']:,} skipped" if found["skipped"] else ""
    speed = f"{found['seconds']:.1f} s, {found['rows_per_second']:,.0f} rows/s"
    return f"{found['read']:,} rows read{resumed}, {found['written']:,} written{skipped}: {speed}\n"


@app.command()
def evaluate(
    artifact: Artifact,
    data: Annotated[Path, typer.Option(help="Labelled file: .csv .tsv .jsonl .parquet.", show_default=False)],
    text: Annotated[str | None, _option(None, text="Column with the text, if it is named otherwise.")] = None,
    text_pair: Annotated[str | None, _option(None, text="Column with the second text, likewise.")] = None,
    label: Annotated[str | None, _option(None, text="Column with the label, likewise.")] = None,
    separator: Annotated[str | None, _option(None, text="Separator of the labels in a multi-label cell.")] = None,
    variant: Annotated[str | None, typer.Option(help="fp32, int8 or fp16 (default: the manifest's choice).")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The metrics of an artifact on a labelled file, through the engine that serves."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kdc.pipeline.compress import evaluate_artifact
    from kdc.pipeline.report.printing import print_evaluation

    result = evaluate_artifact(
        artifact,
        data,
        text=text,
        text_pair=text_pair,
        label=label,
        separator=separator,
        variant=variant,
        device=_device(device),
    )
    _print_json(result) if as_json else print_evaluation(result)


@app.command()
def verify(
    artifact: Artifact,
    data: Annotated[Path | None, _option(None, text="Labelled file; without one, quality is not checked.")] = None,
    teacher: Annotated[str | None, _option(None, text="For rows that were not in the artifact's evaluation.")] = None,
    text: Annotated[str | None, _option(None, text="Column with the text, if it is named otherwise.")] = None,
    text_pair: Annotated[str | None, _option(None, text="Column with the second text, likewise.")] = None,
    label: Annotated[str | None, _option(None, text="Column with the label, likewise.")] = None,
    separator: Annotated[str | None, _option(None, text="Separator of the labels in a multi-label cell.")] = None,
    max_latency_ms: MaxLatency = None,
    max_size_mb: MaxSize = None,
    max_drop: MaxDrop = None,
    min_rows_per_s: MinRows = None,
    at: At = None,
    evidence: Evidence = None,
    confidence: Confidence = None,
    expect_sha256: Annotated[str | None, _option(None, text="Refuse any other manifest than this one.")] = None,
    device: Annotated[str | None, _option(None, text="cpu, cuda or auto (default: where it was judged).")] = None,
    as_json: Json = False,
) -> None:
    """Judge an artifact's contract, or limits in its place, here: hashes, size, latency, and with --data the metric."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kdc.artifact.contract.text import render
    from kdc.tools.verify import verify_artifact

    judgement, before = verify_artifact(
        artifact,
        given={
            "max_latency_ms": max_latency_ms,
            "max_size_mb": max_size_mb,
            "max_drop": max_drop,
            "min_rows_per_s": min_rows_per_s,
            "at": at,
            "evidence": evidence,
            "confidence": confidence,
        },
        data=data,
        teacher=teacher,
        device=None if device is None else _device(device),
        expect_sha256=expect_sha256,
        columns={"text": text, "text_pair": text_pair, "label": label, "separator": separator},
    )
    found = judgement.model_dump(mode="json")
    _print_json(found) if as_json else typer.echo(render(judgement, before))
    _leave(found)


@app.command()
def inspect(
    artifact: Artifact,
    expect_sha256: Annotated[str | None, _option(None, text="Refuse any other manifest than this one.")] = None,
    as_json: Json = False,
) -> None:
    """Manifest, lineage and metrics of an artifact, after checking every file's hash."""
    from kdc.artifact.manifest import load_manifest

    manifest = load_manifest(artifact, expect_sha256=expect_sha256)
    if as_json:
        _print_json(manifest.model_dump(mode="json"))
        return
    from kdc.artifact.inspection import render

    typer.echo(render(manifest))


@app.command()
def push(
    artifact: Artifact,
    target: Annotated[
        str, typer.Argument(help="hf://owner/name, bento:NAME, s3://bucket/path or a path.", show_default=False)
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace another artifact that is there.")] = False,
    allow_failed: Annotated[
        bool, _option(None, "--allow-failed", text="Also an artifact that failed its contract.")
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="A hub repository made for it is public.")] = False,
    as_json: Json = False,
) -> None:
    """Send an artifact to the Hugging Face hub, BentoML's store, an object store or a path; only what is not there."""
    from kdc.artifact.stores.push import push_for_people

    found = push_for_people(artifact, target, force=force, allow_failed=allow_failed, public=public)
    if as_json:
        _print_json(found)
        return
    done = f"{found['sent_bytes']:,} of {found['bytes']:,} bytes sent" if found["changed"] else "is there already"
    typer.echo(f"{found['target']}: {done}, {found['files']} files, SHA-256 {found['sha256']}")


@app.command()
def pull(
    source: Annotated[
        str,
        typer.Argument(
            help="hf://owner/name[@revision], bento:NAME[:VERSION], s3://... or a path.", show_default=False
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where it shall be.", show_default=False)],
    expect_sha256: Annotated[str | None, _option(None, text="Refuse any other manifest than this one.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another artifact that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch an artifact and verify it: it is in DIR whole, or not at all. Goes on where it was cut off."""
    from kdc.artifact.stores.pull import pull_for_people

    found = pull_for_people(source, folder, expect_sha256=expect_sha256, force=force)
    if as_json:
        _print_json(found)
        return
    done = f"{found['received_bytes']:,} of {found['bytes']:,} bytes received, all hashes match"
    typer.echo(f"{folder}: {done if found['changed'] else 'is there already'}, SHA-256 {found['sha256']}")


@app.command()
def tasks(as_json: Json = False) -> None:
    """The tasks that are known by name."""
    from kdc.pipeline.config.tasks import TASKS

    if as_json:
        import dataclasses

        _print_json({name: dataclasses.asdict(task) for name, task in TASKS.items()})
        return
    for task in TASKS.values():
        columns = task.text if task.text_pair is None else f"{task.text} + {task.text_pair}"
        typer.echo(f"{task.name:<8}{columns:<26}{', '.join(task.labels) or 'a number':<40}{', '.join(task.metrics)}")
    typer.echo("\nyours:  kdc compress --train train.csv --text COLUMN [--text-pair COLUMN] --label COLUMN")


@app.command()
def config() -> None:
    """Every setting with its default and meaning, as a TOML file for --config."""
    from kdc.pipeline.config.resolve import render_defaults

    typer.echo(render_defaults())


@app.command()
def doctor(
    hub: Annotated[bool, typer.Option(help="Ask whether the hub can be reached.")] = True, as_json: Json = False
) -> None:
    """Versions, execution providers and whether each really starts, CPU, quota, hub; and what to do."""
    from kdc.tools.doctor import diagnose, render

    found = diagnose(check_hub=hub)
    _print_json(found) if as_json else typer.echo(render(found))


def _leave(judgement: dict[str, Any] | None) -> None:
    """With the exit code of a contract's verdict, where there is a contract."""
    from kdc.artifact.contract.terms import EXIT_CODES

    if judgement is not None and (code := EXIT_CODES[judgement["verdict"]]):
        raise typer.Exit(code)


def _device(name: str) -> Any:
    if name not in ("auto", "cpu", "cuda"):
        raise InputError("no such device", given=name, remedy="auto, cpu or cuda")
    return name


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def main() -> None:
    """Entry point: errors of ours are printed without a traceback and give the exit code."""
    try:
        app()
    except KdcError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "kdc":
            raise
        sys.stderr.write(
            f"error: this command needs more than the serving install\n  given: no module {error.name}\n"
            "  remedy: pip install 'kdc[compress]'\n"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
