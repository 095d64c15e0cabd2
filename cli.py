"""The command line `kdc`: parse, build one request, make one call. Nothing heavy is imported before it is needed.

Options that set a setting are rows of a table beside their command (`kdc.common.options`).
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdc.common.errors import InputError, KdcError, printable
from kdc.common.options import Setting, argument, option, settings, taken, takes

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

# What several commands take.
Artifact = Annotated[Path, argument("Folder of an artifact, for example runs/qnli/artifact.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout; everything else goes to stderr.")
]
Device = Annotated[str, typer.Option(help="Where to run: auto (CUDA where it starts, else the CPU), cpu or cuda.")]
VARIANT = Setting("variant", str, "What to load: fp32, int8, fp16 or cascade (default: the manifest's choice).")
Variant = Annotated[str | None, option(VARIANT.help)]
SHA256 = Setting("expect-sha256", str, "SHA-256 that the manifest must have; any other artifact is refused.")
ALLOW_FAILED = Setting("allow-failed", bool, "Accept an artifact that failed its contract.")
NoExamples = Annotated[bool, option("Quote no rows in the report.", "--no-examples")]
REPLACE = Setting("force", bool, "Replace another artifact that is there already.")
RAY_ADDRESS = Setting("address", str, "Address of the Ray cluster, or auto (default: Ray on this machine alone).")
Set = Annotated[
    list[str] | None, option("One setting, section.key=value, as `kdc config` names it. Repeatable.", "--set")
]

EPOCHS = Setting(
    "epochs",
    float,
    "Passes over the training rows, for teacher and student each (default: the recipe's).",
    keys=("teacher.epochs", "student.epochs"),
)
MAX_TRAIN_ROWS = Setting("max-train-rows", int, "Largest number of rows to train on (default: all).", "data")
TRAINING_DEVICE = Setting("device", str, "Where to train: auto (default; CUDA where there is one), cpu or cuda.", "run")
# The columns of a file of rows.
TEXTS = settings(
    "",
    None,
    ("text", str, "Name of the column with the text (default: as in training)."),
    ("text-pair", str, "Name of the column with the second text of a pair (default: as in training)."),
)
COLUMNS = (
    *TEXTS,
    Setting("label", str, "Name of the column with the label (default label)."),
    Setting("separator", str, "Character that separates the labels of a multi-label cell."),
)
# What a contract asks, to compress to it or to judge it again.
LIMITS = settings(
    "",
    _CONTRACT,
    ("max-latency-ms", float, "Longest time of one call, in milliseconds, at the percentile of --at."),
    ("max-size-mb", float, "Largest size of the ONNX file and tokenizer.json together, in MB (1,000,000 bytes)."),
    ("max-drop", float, "How far the student's metric may be below the teacher's, in points (0 to 100)."),
    ("min-rows-per-s", float, "Fewest rows a second, measured in batches of 32."),
    (
        "require",
        list[str],
        "A share of the evaluation rows that must be shown, by the artifact's decisions: LABEL:precision>=0.95, "
        "LABEL:recall>=0.9, LABEL:fpr<=0.01, accuracy>=0.98 (of the rows that are answered), coverage>=0.5 (rows that "
        "are answered). Repeatable.",
    ),
    (
        "at",
        str,
        "How time is measured, any of length=64,batch=1,percentile=95,threads=2: tokens of a row, rows of a call, "
        "percentile of the calls' times, threads of a forward pass.",
    ),
    (
        "evidence",
        str,
        "What must keep to --max-drop and --require: interval, the confidence interval of what was measured (default), "
        "or point, what was measured itself.",
    ),
    (
        "against",
        str,
        "What --max-drop compares with: teacher, or best (default), the better one of teacher and baselines.",
    ),
    ("confidence", float, "Confidence of these intervals, above 0.5 and at most 0.99 (default 0.95)."),
)
COMPRESS = (
    *settings(
        "data",
        None,
        ("task", str, "Name of a GLUE task, or pydocs, which needs no data: see `kdc tasks`."),
        ("data", Path, "Folder with the data: GLUE's TSV files, `save_to_disk`, or files (default: the hub)."),
    ),
    *settings(
        "data",
        _OWN,
        ("train", Path, "Labelled rows to train on: .csv, .tsv, .jsonl or .parquet."),
        ("eval", Path, "Labelled rows to evaluate on (default: a tenth of the training rows)."),
        ("unlabeled", Path, "Further texts, which the student learns by the teacher's answers to them."),
        ("max-unlabeled-rows", int, "Of these texts so many at most, drawn at random (default: all)."),
        ("text", str, "Name of the column with the text."),
        ("text-pair", str, "Name of the column with the second text of a pair."),
        ("label", str, "Name of the column with the label (default label)."),
        ("kind", str, "What it holds: auto (default; its values tell), classification, multilabel or regression."),
        ("separator", str, "Character between the labels of a multi-label cell."),
        ("group", str, "Name of a column: rows with one value there (a user, a document) are never parted."),
        ("time", str, "Name of a column with a row's time: the last tenth is the evaluation, where none is given."),
    ),
    *settings(
        "run",
        _MODELS,
        ("family", str, "Model family: bert (default), roberta, deberta, minilm, modernbert or ettin."),
        ("recipe", str, "Distillation recipe: best (default), paper (the authors' script) or paper-as-described."),
        (
            "controls",
            bool,
            "Also train and evaluate the student without distillation and without unlabelled texts, and the teacher "
            "with LoRA.",
        ),
    ),
    *settings(
        "teacher",
        _MODELS,
        ("teacher", list[str], "Hub id or path. Repeated: several are averaged, and a student is cut from the first."),
        ("teacher-scores", Path, "A black box's answers to all rows; they take the teacher's place.", "teacher.scores"),
        (
            "teacher-is-finetuned",
            bool,
            "The teacher is fine-tuned for the task already: check it, do not train it.",
            "teacher.finetuned",
        ),
        ("teacher-labels", str, "Names, in order, for the labels of a LABEL_0 teacher: neg,pos.", "teacher.labels"),
        (
            "teacher-search",
            str,
            "Find the teacher's learning rates by short trainings first: quick, or off (default).",
            "teacher.search",
        ),
    ),
    Setting(
        "student",
        str,
        "Hub id or path, or the teacher's layers to keep, counted from 0: layers:0,1,5, layers:first-and-last, "
        "layers:first-half or layers:every-second, each with ,ffn=768 for so many neurons in each layer; conv, static "
        "or linear: its token vectors and none of its layers, which answers in microseconds; or teacher, which is the "
        "teacher itself.",
        panel=_MODELS,
        keys=("student.model",),
    ),
    Setting(
        "vocabulary",
        str,
        "Pieces of the teacher's vocabulary that a student made of it keeps: all (default); auto, those that your "
        "texts use; or a number, these and the most frequent others up to so many.",
        "student",
        panel=_MODELS,
    ),
    MAX_TRAIN_ROWS,
    EPOCHS,
    Setting(
        "max-hours",
        float,
        "Longest time, in hours, of the teacher's training, of the student's, and of the search for a student, each. A "
        "training's rate falls so that it is done by then (no default).",
        keys=("teacher.hours", "student.hours", "contract.max_hours"),
    ),
    Setting("seed", int, "Seed of splits, initialisation, order of the rows and dropout (default 0).", "run"),
    TRAINING_DEVICE,
    Setting(
        "formats",
        str,
        "What the artifact is: onnx, which kdc serves, or onnx,hf (default), a Hugging Face folder besides, which "
        "transformers, Optimum and transformers.js open.",
        "export",
    ),
    Setting(
        "aim",
        list[str],
        "What a label's threshold is chosen by, on rows held out of training: f1, matthews, precision>=0.95, "
        "recall>=0.99, fpr<=0.01, or the threshold itself; for one label LABEL:recall>=0.9. Repeatable (default: f1 "
        "for each label of a multi-label task; else the most probable class).",
        keys=("operating.aims",),
    ),
    Setting(
        "abstain",
        str,
        "Which rows of several classes are answered: accuracy>=0.98, the most of which that share is shown to be right "
        "on rows held out of training, or the least probability of an answer, such as 0.9 (default: all).",
        "operating",
    ),
    Setting(
        "sets",
        float,
        "Give each row a set of labels too, which holds the true one with this probability, such as 0.95, by rows held "
        "out of training; of three classes or more (default: no sets).",
        "operating",
    ),
    Setting(
        "cascade",
        str,
        "A second model for the rows that the student is not sure of, where that gains: auto, the teacher itself; or "
        "the artifact of another run on the same rows (default: auto where a contract's student is searched for).",
        keys=("cascade.second",),
    ),
    Setting(
        "long",
        str,
        "What becomes of texts with more tokens than the model takes at once: cut (default), or windows, whose answers "
        "become one.",
        keys=("long.mode",),
    ),
    Setting("max-int8-drop", float, "Points that int8 may lose; beyond, a CPU loads fp32 (default 1.0).", "quantize"),
    Setting("out", Path, "Run directory (default runs/<task>); the same one goes on where it was cut off.", "run"),
    *LIMITS,
    *settings(
        "contract",
        _CONTRACT,
        (
            "search",
            str,
            "Short trainings that choose the student: of the three most promising that can keep latency and size "
            "(quick, the default), of all (full), or none (off). The teacher itself is a candidate without training.",
        ),
    ),
)


@app.command()
@takes(*COMPRESS)
def compress(
    given: dict[str, Any],
    no_examples: NoExamples = False,
    frontier: Annotated[
        bool,
        option(
            "Make the whole curve in place of one artifact: the student, the teacher itself, fewer layers and none, "
            "each with an artifact, and a page that compares them. --max-hours bounds all their trainings together.",
            "--frontier",
            panel=_FLOW,
        ),
    ] = False,
    config: Annotated[Path | None, option("TOML file with settings; `kdc config` prints one with all of them.")] = None,
    set_: Set = None,
    from_: Annotated[str | None, option("Stage from which on all is done again.", "--from", panel=_FLOW)] = None,
    until: Annotated[str | None, option("Stage to stop after.", panel=_FLOW)] = None,
    force: Annotated[bool, option("Do all stages again.", "--force", panel=_FLOW)] = False,
    as_json: Json = False,
) -> None:
    """From a labelled task to a verified ONNX artifact. The same command again goes on where it was cut off."""
    from kdc.artifact.contract.terms import EXIT_CODES, parse_conditions
    from kdc.pipeline.config import resolve

    limits = {f"contract.{name}": value for name, value in taken(given, LIMITS).items()}
    conditions = parse_conditions(limits.pop("contract.at", None))
    limits |= {f"contract.at.{name}": value for name, value in conditions.items()}
    first, *more = given.pop("teacher.teacher", None) or [None]
    teachers = {"teacher.model": first, "teacher.more": tuple(more) or None}
    examples = {"report.examples": False} if no_examples else {}
    resolved = resolve.resolve(
        flags=resolve.layer_of(given | limits | teachers | examples),
        sets=resolve.parse_sets(set_ or []),
        file=resolve.read_file(config) if config else {},
    )
    from kdc.pipeline.compress import (
        command_to_go_on,
        compress_for_people,
        frontier_for_people,
        render,
        render_frontier,
    )

    command = command_to_go_on(sys.argv[1:])
    if frontier:
        if until is not None:
            raise InputError("a frontier has no last stage", given=f"--until {until}", remedy="drop it, or --frontier")
        made = frontier_for_people(resolved, start_from=from_, force=force, command=command)
        _print(as_json, made.to_json(), render_frontier(made))
        return
    result = compress_for_people(resolved, start_from=from_, until=until, force=force, command=command)
    if not result.stages:  # a process that torchrun started beside the one that tells
        return
    _print(as_json, result.to_json(), render(result))
    raise typer.Exit(EXIT_CODES[result.verdict or "pass"])


@app.command()
def report(
    run: Annotated[Path, argument("Run directory of a finished `kdc compress`.")],
    no_examples: NoExamples = False,
    as_json: Json = False,
) -> None:
    """The proof as a page: report.html, report.json and report.md in the run's directory."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kdc.pipeline.report.page import write_report

    facts = write_report(run, examples=not no_examples)
    _print(as_json, facts.to_json(), f"{facts.verdict}\nreport: {run / 'report.html'}")


BENCH = (
    Setting(
        "rounds", int, "Turns of each subject at each size of call; the figures are their medians (default 5).", least=1
    ),
    Setting("seconds", float, "Length of a turn, in seconds (default 0.5).", least=0.01),
)


@app.command()
@takes(*BENCH)
def bench(
    given: dict[str, Any],
    subjects: Annotated[
        list[str],
        argument(
            "What to measure, as [NAME=]PATH[@VARIANT]: artifacts, or folders with Hugging Face models. "
            "The first one is the measure of the others."
        ),
    ],
    batch: Annotated[str, typer.Option(help="Numbers of rows in a call, separated by commas.")] = "1,8,32",
    length: Annotated[str, typer.Option(help="Numbers of tokens in a row, separated by commas.")] = "16,64,128",
    threads: Annotated[
        str | None,
        option(
            "Threads of a forward pass; with several numbers, separated by commas, every subject is measured with each "
            "of them in turns (default: all cores that the process may use)."
        ),
    ] = None,
    device: Device = "auto",
    plot: Annotated[Path | None, option("File for a picture of the result: .svg, .png or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Latency, throughput, cold start, memory and share of the CPU's peak, the first one the measure of the others."""
    from kdc.common.progress import Reporter
    from kdc.tools.bench.result import render
    from kdc.tools.bench.run import Case, parse_subject, run_bench

    if plot is not None:
        from kdc.tools.bench.plot import check_format, draw

        check_format(plot)
    cases = [Case(rows, tokens) for tokens in _numbers("--length", length) for rows in _numbers("--batch", batch)]
    parsed = [parse_subject(subject) for subject in subjects]
    numbers = () if threads is None else _numbers("--threads", threads)
    with Reporter() as reporter:
        reporter.started("bench", "loads every subject three times")
        result = run_bench(parsed, cases, device=_device(device), threads=numbers, progress=reporter.progress, **given)
    if plot is not None:
        draw(result, plot)
    _print(as_json, result, render(result))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def _numbers(name: str, text: str, least: int = 1) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and least <= int(part) <= 100_000 for part in parts):
        raise InputError(f"{name} is not a list of whole numbers from {least} on", given=text, remedy="e.g. 1,8,32")
    return tuple(int(part) for part in parts)


STUDY = (
    Setting(
        "recipe", str, "Distillation recipe: paper (default; the authors' script), paper-as-described or best.", "run"
    ),
    Setting("data", Path, "Folder with the data in GLUE's layout (default: the hub).", "data"),
    MAX_TRAIN_ROWS,
    EPOCHS,
    TRAINING_DEVICE,
)
STUDY_ENGINE = (
    Setting("engine", str, "local (default) trains one cell after the other; ray trains side by side on a cluster."),
    RAY_ADDRESS,
    Setting(
        "threads",
        int,
        "Threads of a training; with ray also the cores that it reserves (default: as the environment says; ray: 1).",
        least=1,
    ),
)


@app.command()
@takes(*STUDY, *STUDY_ENGINE)
def study(
    given: dict[str, Any],
    tasks: Annotated[str, option("Names of GLUE tasks, or pydocs, separated by commas.")],
    out: Annotated[Path, option("Directory of the study. The same one again goes on where it was cut off.")],
    families: Annotated[
        str,
        typer.Option(help="Families, separated by commas: bert, roberta, deberta, minilm, modernbert, ettin."),
    ] = "bert,roberta,deberta",
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, separated by commas: fft and lora train the teacher; kd-lora distils; student-lora "
            "and student-fft train the student on labels alone; probe and tfidf are baselines."
        ),
    ] = "fft,lora,kd-lora,student-lora,student-fft,probe,tfidf",
    ranks: Annotated[str, typer.Option(help="LoRA ranks, separated by commas.")] = "8",
    seeds: Annotated[
        str, typer.Option(help="Seeds, separated by commas; every training is done once for each.")
    ] = "1,2,3",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """The paper's tables: a grid of trainings, beside the published figures. Goes on where it was cut off."""
    from kdc.tools.study.grid import Grid
    from kdc.tools.study.study import study_for_people

    how = taken(given, STUDY_ENGINE)
    grid = Grid(
        tasks=_names(tasks),
        families=_names(families),
        methods=_names(methods),
        ranks=_numbers("--ranks", ranks),
        seeds=_numbers("--seeds", seeds, least=0),
        out=out,
        sets=tuple(set_ or ()),
        flags=tuple(({"run.recipe": "paper"} | given).items()),
    )
    result = study_for_people(grid, **how)
    _print(as_json, {"files": result.files, "failed": result.failed}, "\n".join(result.files))
    if result.failed:
        raise KdcError("some cells failed", given="; ".join(result.failed), remedy="the same command tries them again")


@app.command(name="try")
def try_(
    artifact: Artifact,
    text: Annotated[str, argument("Text to classify.")],
    pair: Annotated[str | None, argument("Second text, where the task takes pairs.")] = None,
    variant: Variant = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """One prediction."""
    from kdc.serving.engine.engine import Engine

    engine = Engine.load(artifact, variant=variant, device=_device(device))
    (answer,) = engine.predict([text if pair is None else (text, pair)])
    scores = dict(zip(engine.labels or ("score",), map(float, answer), strict=True))
    best_first = sorted(scores, key=lambda label: -scores[label])
    width = max(map(len, scores))
    lines = []
    for label in best_first:
        bar = "  " + "#" * round(40 * scores[label]) if engine.labels else ""
        lines.append(f"{label:<{width}}  {scores[label]:.4f}{bar}")
    entries = [{"label": label, "score": scores[label]} for label in best_first]
    document: dict[str, Any] = {"scores": entries, "variant": engine.variant, "provider": engine.provider}
    if engine.labels:
        (document["decision"],) = engine.decided(answer[None])
    if engine.task.points or engine.task.abstain is not None:
        gets = document["decision"]
        lines.append(f"decision: {(', '.join(gets) or 'no label') if isinstance(gets, list) else gets}")
    if engine.task.sets is not None:
        (document["set"],) = engine.label_sets(answer[None])
        lines.append(f"set: {', '.join(document['set'])}")
    _print(as_json, document, "\n".join(lines))


SERVE = (
    Setting("workers", int, "Worker processes, which share the port (default 1)."),
    Setting("device", str, "Where to run: auto (default; CUDA where it starts, else the CPU), cpu, cuda or tensorrt."),
    VARIANT,
    Setting("threads", int, "Threads of a worker's forward passes together (default: usable cores / workers)."),
    Setting("api-key-env", str, "Environment variable with the bearer token that requests must bring (default: none)."),
    ALLOW_FAILED,
    Setting(
        "grpc-address",
        str,
        "HOST:PORT of the Open Inference Protocol over gRPC, such as 127.0.0.1:9000 (default: no gRPC).",
    ),
    Setting(
        "expect-sha256",
        str,
        "SHA-256 that the manifest must have, of several artifacts NAME=SHA256,...; any other artifact is refused.",
    ),
    Setting(
        "drain-delay",
        float,
        "Seconds for which SIGTERM is followed by 503 answers before the service stops listening (default 2).",
        keys=("drain_delay_s",),
    ),
    *settings(
        "",
        _LIMITS,
        ("max-body-bytes", int, "Largest body of a request, in bytes (default 2 MiB)."),
        ("max-bodies-bytes", int, "Largest sum of the bodies held at one time, in bytes (default 128 MiB)."),
        ("max-text-chars", int, "Longest text, in characters (default 200000)."),
        ("max-texts", int, "Most texts in a request (default 1024)."),
        ("max-queue-tokens", int, "Most tokens that may wait for a forward pass; beyond, 429 (default 65536)."),
        ("max-queue", float, "Longest expected wait, in seconds; beyond, 429 (default 1).", "max_queue_s"),
        ("max-batch-tokens", int, "Most tokens of a pass, padding included (default: 256 on a CPU, 4096 on a GPU)."),
        ("max-requests", int, "Most requests in work at one time (default 1024)."),
        ("timeout", float, "Seconds until a request is given up (default 10).", "timeout_s"),
    ),
)


@app.command()
@takes(*SERVE)
def serve(
    given: dict[str, Any],
    artifacts: Annotated[
        list[str] | None,
        argument(
            "Artifacts to serve, as [NAME=]PATH or [NAME=]ADDRESS (see `kdc pull`); default: the newest one in runs/."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Host name or IP address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port to listen on.", min=1, max=65535)] = 3000,
) -> None:
    """Serve artifacts over HTTP. All options but --host and --port are KDC_* variables too: see docs/serving.md."""
    # A container's first process misses signals that it has no handler for, and the imports take seconds. The handler
    # ends the process itself: an exception raised while a C extension is imported would come out as an ImportError.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from kdc.serving import launch
    from kdc.serving.http.artifacts import newest
    from kdc.serving.http.settings import resolve

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # from here on there may be something to clean up

    if not artifacts and not os.environ.get("KDC_ARTIFACT"):
        artifacts = [str(newest())]
    launch.serve(resolve({"artifact": ",".join(artifacts or []) or None} | given), host, port)


PREDICT = (
    *TEXTS,
    Setting("prefix", str, "Prefix for the names of the new columns (default: none)."),
    Setting("all-scores", bool, "Add a column with the score of each class, not only of the best."),
    Setting("on-error", str, "What to do with a row that has no text: stop (default), or skip it."),
    Setting("errors", str, "File or URL for the list of skipped rows, in JSONL."),
    Setting(
        "max-text-chars", int, "Characters of a text (default: 200000); a longer one is a row without text.", least=1
    ),
    VARIANT,
    Setting(
        "threads",
        int,
        "Threads of all passes (default: all usable cores); with --engine ray, threads of one actor (default 1).",
        least=1,
    ),
    Setting("engine", str, "local (default) works in this process; ray in actors on a cluster, into a directory."),
    RAY_ADDRESS,
    Setting("actors", int, "Number of Ray actors (default: as many as there are cores or GPUs).", least=1),
    Setting("force", bool, "Replace an existing output, and drop an unfinished job."),
    ALLOW_FAILED,
)


@app.command()
@takes(*PREDICT)
def predict(
    given: dict[str, Any],
    artifact: Artifact,
    source: Annotated[str, argument("File, directory, pattern or URL; - is JSONL on standard input.", "INPUT")],
    output: Annotated[
        str, argument(".parquet, .jsonl, .csv or .tsv, or a URL; - is JSONL on standard output.", "OUTPUT")
    ],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Label and score a table of any size: columns stay, label and score join them. Goes on where it was cut off."""
    from kdc.serving.bulk.predict import predict as predict_table
    from kdc.serving.bulk.request import PredictRequest

    request = PredictRequest(artifact=artifact, source=source, output=output, device=_device(device), **given)
    result = predict_table(request)
    if as_json and output != "-":
        _print(as_json, result.to_json(), result.summary)
    else:
        sys.stderr.write(f"{result.summary}\n")


@app.command()
@takes(*COLUMNS)
def evaluate(
    columns: dict[str, Any],
    artifact: Artifact,
    data: Annotated[Path, option("File with labelled rows: .csv, .tsv, .jsonl or .parquet.")],
    variant: Variant = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The metrics of an artifact on a labelled file, through the engine that serves."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kdc.tools.labelled import evaluate_artifact, render

    evaluation = evaluate_artifact(artifact, data, columns=columns, variant=variant, device=_device(device))
    _print(as_json, evaluation, render(evaluation))


VERIFY = (
    Setting("data", Path, "File with labelled rows to compare on (default: the quality is not measured again)."),
    Setting("teacher", str, "Hub id or path of the teacher, needed for rows that the artifact was not evaluated on."),
    SHA256,
)


@app.command()
@takes(*LIMITS, *COLUMNS, *VERIFY)
def verify(
    given: dict[str, Any],
    artifact: Artifact,
    device: Annotated[
        str | None, option("Where to measure: cpu, cuda or auto (default: where the contract was judged).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge an artifact's contract, or limits in its place, here: hashes, size, latency, and with --data the metric."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kdc.artifact.contract.terms import EXIT_CODES
    from kdc.artifact.contract.text import render
    from kdc.tools.verify import verify_artifact

    columns, how = taken(given, COLUMNS), taken(given, VERIFY)
    where = None if device is None else _device(device)
    judgement, before = verify_artifact(artifact, given=given, columns=columns, device=where, **how)
    _print(as_json, judgement, render(judgement, before))
    raise typer.Exit(EXIT_CODES[judgement.verdict])


@app.command(name="inspect")
@takes(SHA256)
def inspect_(given: dict[str, Any], artifact: Artifact, as_json: Json = False) -> None:
    """Manifest, lineage and metrics of an artifact, after checking every file's hash."""
    from kdc.artifact.folder import load_manifest
    from kdc.artifact.inspection import render

    manifest = load_manifest(artifact, **given)
    _print(as_json, manifest, render(manifest))


@app.command()
@takes(
    REPLACE,
    ALLOW_FAILED,
    Setting("public", bool, "Make the hub repository public, where a new one is created (default: private)."),
)
def push(
    given: dict[str, Any],
    artifact: Artifact,
    target: Annotated[
        str, argument("Where to send it: hf://owner/name, bento:NAME, s3://bucket/path or another URL, or a path.")
    ],
    as_json: Json = False,
) -> None:
    """Send an artifact to the Hugging Face hub, BentoML's store, an object store or a path; only what is not there."""
    from kdc.artifact.stores.transfer import push_artifact

    result = push_artifact(artifact, target, **given)
    done = f"{result.sent_bytes:,} of {result.bytes:,} bytes sent" if result.changed else "is there already"
    _print(as_json, result, f"{result.target}: {done}, {result.files} files, SHA-256 {result.sha256}")


@app.command()
@takes(SHA256, REPLACE)
def pull(
    given: dict[str, Any],
    source: Annotated[
        str,
        argument(
            "Where it is: hf://owner/name[@revision], bento:NAME[:VERSION], s3://bucket/path or another URL, or a path."
        ),
    ],
    folder: Annotated[Path, argument("Folder that will hold the artifact.", "DIR")],
    as_json: Json = False,
) -> None:
    """Fetch an artifact and verify it: it is in DIR whole, or not at all. Goes on where it was cut off."""
    from kdc.artifact.stores.transfer import pull_artifact

    result = pull_artifact(source, folder, **given)
    done = f"{result.received_bytes:,} of {result.bytes:,} bytes received, all hashes match"
    _print(as_json, result, f"{folder}: {done if result.changed else 'is there already'}, SHA-256 {result.sha256}")


@app.command()
@takes(
    Setting("name", str, "Name of a Triton model (default: the task's), or tag of an image (default latest)."),
    Setting("variant", str, "fp32, int8 or fp16 of a Triton model (default: the one that CPUs load)."),
    ALLOW_FAILED,
)
def export(
    given: dict[str, Any],
    artifact: Artifact,
    target: Annotated[
        str,
        argument("Triton's model repository, the folder of the image layout, or MLflow's address: sqlite:///FILE.db."),
    ],
    to: Annotated[
        str,
        option(
            "triton: a model of its ONNX Runtime backend, which takes token ids; oci: an image layout with the "
            "artifact under /models, for registries, Kubernetes and KServe; mlflow: a run and a pyfunc model.",
            "--to",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Write an artifact as a Triton model, as an OCI image that any registry takes, or into MLflow."""
    from kdc.tools.export.export import export_artifact

    result = export_artifact(artifact, target, form=to, **given)
    done = f"{result.place}: {result.bytes:,} bytes, artifact SHA-256 {result.sha256}\nnext: {result.next}"
    _print(as_json, result._asdict(), done)


@app.command()
def tasks(as_json: Json = False) -> None:
    """The tasks that are known by name."""
    from kdc.pipeline.config.tasks import TASKS

    lines = []
    for task in TASKS.values():
        columns = task.text if task.text_pair is None else f"{task.text} + {task.text_pair}"
        lines.append(f"{task.name:<8}{columns:<26}{', '.join(task.labels) or 'a number':<40}{', '.join(task.metrics)}")
    lines.append("\nyours:  kdc compress --train train.csv --text COLUMN [--text-pair COLUMN] --label COLUMN")
    _print(as_json, TASKS, "\n".join(lines))


@app.command()
def config() -> None:
    """Every setting with its default and meaning, as a TOML file for --config."""
    from kdc.pipeline.config.resolve import render_defaults

    typer.echo(render_defaults())


@app.command()
def doctor(
    hub: Annotated[bool, typer.Option(help="Also try to reach the Hugging Face hub (3 seconds at most).")] = True,
    as_json: Json = False,
) -> None:
    """Versions, execution providers and whether each really starts, CPU, quota, hub; and what to do."""
    from kdc.tools.doctor.diagnose import diagnose
    from kdc.tools.doctor.report import render

    report = diagnose(check_hub=hub)
    _print(as_json, report, render(report))


def _device(name: str) -> Any:
    if name not in ("auto", "cpu", "cuda"):
        raise InputError("no such device", given=name, remedy="auto, cpu or cuda")
    return name


def _print(as_json: bool, document: Any, text: str) -> None:
    """Print a result: its document as JSON, with pydantic models in it as their JSON objects, or its text."""
    if as_json:
        text = json.dumps(document, indent=2, default=lambda model: model.model_dump(mode="json"))
    typer.echo(printable(text))


def main() -> None:
    """Entry point: errors of ours are printed without a traceback and give the exit code."""
    try:
        app()
        return
    except KdcError as error:
        told = error
    except OSError as error:
        from kdc.common.files import refusal

        if (refused := refusal(error)) is None:
            raise
        told = refused
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "kdc":
            raise
        what = "this command needs more than the serving install"
        told = KdcError(what, given=f"no module {error.name}", remedy="pip install 'kdc[compress]'")
    from kdc.common.places import without_secrets

    sys.stderr.write(f"error: {printable(without_secrets(str(told)))}\n")
    sys.exit(told.exit_code)


if __name__ == "__main__":
    main()
