"""The command line `kdc`: parse, build one request, make one call. Nothing heavy is imported before it is needed.

Options that set a setting are rows of a table (`Setting`) beside their command; `takes` makes Typer's options of them.
"""

import functools
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

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


@dataclass(frozen=True)
class Setting:
    """An option of a command that sets a setting; where it is not given, it sets nothing.

    Attributes:
        name: of the option, e.g. "max-drop".
        type: of its value; bool makes a flag.
        help: what it does, its unit, its default.
        section: of the setting, e.g. "contract"; "" for one that stands alone.
        panel: heading under which `--help` lists it.
        keys: the settings that it sets, where they are named otherwise than section and option.
        least: smallest value, for a number.
    """

    name: str
    type: Any
    help: str
    section: str = ""
    panel: str | None = None
    keys: tuple[str, ...] = ()
    least: int | None = None

    @property
    def sets(self) -> tuple[str, ...]:
        """Dotted names of the settings that it sets."""
        return self.keys or (".".join(filter(None, (self.section, self.name.replace("-", "_")))),)


def _settings(section: str, panel: str | None, *rows: tuple[Any, ...]) -> tuple[Setting, ...]:
    """Options of one section and panel, each (name, type, help) or (name, type, help, key of the setting)."""
    return tuple(Setting(name, kind, help, section, panel, tuple(keys)) for name, kind, help, *keys in rows)


def takes(*settings: Setting) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these options; its first argument receives the values that were given, by the settings' names."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = {setting.name.replace("-", "_"): setting for setting in settings}
        hints = get_type_hints(command, include_extras=True)
        _, *own = inspect.signature(command).parameters.values()
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = []
        for name, setting in options.items():
            option = _option(setting.help, f"--{setting.name}", panel=setting.panel, least=setting.least)
            hint: Any = setting.type | None
            parameters.append(inspect.Parameter(name, keyword, default=None, annotation=Annotated[hint, option]))
        parameters += [each.replace(kind=keyword, annotation=hints[each.name]) for each in own]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            pairs = [(options[name], values.pop(name)) for name in options]
            command({key: value for setting, value in pairs if value is not None for key in setting.sets}, **values)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _option(help: str, *names: str, panel: str | None = None, least: int | None = None) -> Any:
    """An option whose help says its default."""
    return typer.Option(*names, help=help, rich_help_panel=panel, min=least, show_default=False)


# What several commands take.
Artifact = Annotated[
    Path, typer.Argument(help="Folder of an artifact, for example runs/qnli/artifact.", show_default=False)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout; everything else goes to stderr.")
]
Device = Annotated[str, typer.Option(help="Where to run: auto (CUDA where it starts, else the CPU), cpu or cuda.")]
VARIANT = Setting("variant", str, "ONNX file to load: fp32, int8 or fp16 (default: the manifest's choice).")
Variant = Annotated[str | None, _option(VARIANT.help)]
Sha256 = Annotated[str | None, _option("SHA-256 that the manifest must have; any other artifact is refused.")]
ALLOW_FAILED = Setting("allow-failed", bool, "Accept an artifact that failed its contract.")
AllowFailed = Annotated[bool, _option(ALLOW_FAILED.help, "--allow-failed")]
NoExamples = Annotated[bool, _option("Quote no rows in the report.", "--no-examples")]
Text = Annotated[str | None, _option("Name of the column with the text (default: as in training).")]
TextPair = Annotated[
    str | None, _option("Name of the column with the second text of a pair (default: as in training).")
]
Label = Annotated[str | None, _option("Name of the column with the label (default label).")]
Separator = Annotated[str | None, _option("Character that separates the labels of a multi-label cell.")]
Set = Annotated[
    list[str] | None, _option("One setting, section.key=value, as `kdc config` names it. Repeatable.", "--set")
]

EPOCHS = Setting(
    "epochs",
    float,
    "Passes over the training rows, for teacher and student each (default: the recipe's).",
    keys=("teacher.epochs", "student.epochs"),
)
MAX_TRAIN_ROWS = Setting("max-train-rows", int, "Largest number of rows to train on (default: all).", "data")
TRAINING_DEVICE = Setting("device", str, "Where to train: auto (default; CUDA where there is one), cpu or cuda.", "run")
# What a contract asks, to compress to it or to judge it again.
LIMITS = _settings(
    "",
    _CONTRACT,
    ("max-latency-ms", float, "Longest time of one call, in milliseconds, at the percentile of --at."),
    ("max-size-mb", float, "Largest size of the ONNX file and tokenizer.json together, in MB (1,000,000 bytes)."),
    ("max-drop", float, "How far the student's metric may be below the teacher's, in points (0 to 100)."),
    ("min-rows-per-s", float, "Fewest rows a second, measured in batches of 32."),
    (
        "at",
        str,
        "How time is measured, any of length=64,batch=1,percentile=95,threads=2: tokens of a row, rows of a call, "
        "percentile of the calls' times, threads of a forward pass.",
    ),
    (
        "evidence",
        str,
        "What must keep to --max-drop: interval, the lower end of the difference's confidence interval (default), or "
        "point, the difference itself.",
    ),
    ("confidence", float, "Confidence of that interval, above 0.5 and at most 0.99 (default 0.95)."),
)
COMPRESS = (
    *_settings(
        "data",
        None,
        ("task", str, "Name of a GLUE task, or pydocs, which needs no data: see `kdc tasks`."),
        ("data", Path, "Folder with the data: GLUE's TSV files, `save_to_disk`, or files (default: the hub)."),
    ),
    *_settings(
        "data",
        _OWN,
        ("train", Path, "Labelled rows to train on: .csv, .tsv, .jsonl or .parquet."),
        ("eval", Path, "Labelled rows to evaluate on (default: a tenth of the training rows)."),
        ("unlabeled", Path, "Further texts, which the student learns by the teacher's answers to them."),
        ("text", str, "Name of the column with the text."),
        ("text-pair", str, "Name of the column with the second text of a pair."),
        ("label", str, "Name of the column with the label (default label)."),
        (
            "kind",
            str,
            "What it holds: auto (default; its values tell), classification, multilabel or regression.",
        ),
        ("separator", str, "Character between the labels of a multi-label cell."),
    ),
    *_settings(
        "run",
        _MODELS,
        ("family", str, "Model family: bert (default), roberta, deberta or minilm."),
        ("recipe", str, "Distillation recipe: best (default), or paper, the published one."),
        ("controls", bool, "Also train and evaluate the student without distillation, and the teacher with LoRA."),
    ),
    *_settings(
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
    ),
    Setting(
        "student",
        str,
        "Hub id or path, or the teacher's layers to keep, counted from 0: layers:0,1,5, layers:first-and-last, "
        "layers:first-half or layers:every-second.",
        panel=_MODELS,
        keys=("student.model",),
    ),
    MAX_TRAIN_ROWS,
    EPOCHS,
    Setting("seed", int, "Seed of splits, initialisation, order of the rows and dropout (default 0).", "run"),
    TRAINING_DEVICE,
    Setting(
        "max-int8-drop",
        float,
        "Points that int8 may lose; beyond, a CPU loads fp32 (default 1.0).",
        "quantize",
    ),
    Setting("out", Path, "Run directory (default runs/<task>); the same one goes on where it was cut off.", "run"),
    *LIMITS,
    *_settings(
        "contract",
        _CONTRACT,
        (
            "search",
            str,
            "Short trainings that choose the student: of the three largest candidates that can keep latency and size "
            "(quick, the default), of all (full), or none (off).",
        ),
        (
            "max-hours",
            float,
            "Longest time of these trainings, in hours; the best so far is then taken (no default).",
        ),
    ),
)


@app.command()
@takes(*COMPRESS)
def compress(
    given: dict[str, Any],
    no_examples: NoExamples = False,
    config: Annotated[
        Path | None, _option("TOML file with settings; `kdc config` prints one with all of them.")
    ] = None,
    set_: Set = None,
    from_: Annotated[str | None, _option("Stage from which on all is done again.", "--from", panel=_FLOW)] = None,
    until: Annotated[str | None, _option("Stage to stop after.", panel=_FLOW)] = None,
    force: Annotated[bool, _option("Do all stages again.", "--force", panel=_FLOW)] = False,
    as_json: Json = False,
) -> None:
    """From a labelled task to a verified ONNX artifact. The same command again goes on where it was cut off."""
    from kdc.artifact.contract.terms import parse_conditions
    from kdc.pipeline.config import resolve as settings

    limits = {f"contract.{name}": given.pop(name) for (name,) in (limit.sets for limit in LIMITS) if name in given}
    conditions = parse_conditions(limits.pop("contract.at", None))
    limits |= {f"contract.at.{name}": value for name, value in conditions.items()}
    first, *more = given.pop("teacher.teacher", None) or [None]
    teachers = {"teacher.model": first, "teacher.more": tuple(more) or None}
    examples = {"report.examples": False} if no_examples else {}
    resolved = settings.resolve(
        flags=settings.layer_of(given | limits | teachers | examples),
        sets=settings.parse_sets(set_ or []),
        file=settings.read_file(config) if config else {},
    )
    from kdc.pipeline.compress import command_to_go_on, compress_for_people

    command = command_to_go_on(sys.argv[1:])
    result = compress_for_people(resolved, start_from=from_, until=until, force=force, command=command)
    if not result.stages:  # a process that torchrun started beside the one that tells
        return
    if as_json:
        _print_json(result.to_json())
    else:
        from kdc.pipeline.report.summary import render

        typer.echo(render(result))
    _leave(result.verdict)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run directory of a finished `kdc compress`.", show_default=False)],
    no_examples: NoExamples = False,
    as_json: Json = False,
) -> None:
    """The proof as a page: report.html, report.json and report.md in the run's directory."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kdc.pipeline.report.page import write_report

    facts = write_report(run, examples=not no_examples)
    _print_json(facts.to_json()) if as_json else typer.echo(f"{facts.verdict}\nreport: {run / 'report.html'}")


@app.command()
def bench(
    subjects: Annotated[
        list[str],
        typer.Argument(
            help="What to measure, as [NAME=]PATH[@VARIANT]: artifacts, or folders with Hugging Face models. "
            "The first one is the measure of the others.",
            show_default=False,
        ),
    ],
    batch: Annotated[str, typer.Option(help="Numbers of rows in a call, separated by commas.")] = "1,8,32",
    length: Annotated[str, typer.Option(help="Numbers of tokens in a row, separated by commas.")] = "16,64,128",
    rounds: Annotated[
        int,
        typer.Option(
            help="How many turns each subject has at each combination of rows and tokens; the figures are medians.",
            min=1,
        ),
    ] = 5,
    seconds: Annotated[float, typer.Option(help="Length of a turn, in seconds.", min=0.01)] = 0.5,
    threads: Annotated[
        int | None, _option("Threads of a forward pass (default: all cores that the process may use).")
    ] = None,
    device: Device = "auto",
    plot: Annotated[Path | None, _option("File for a picture of the result: .svg, .png or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Latency, throughput, cold start and memory, side by side, the first one the measure of the others."""
    from kdc.common.progress import Reporter
    from kdc.tools.bench.run import Case, parse_subject, run_bench
    from kdc.tools.bench.text import render

    if plot is not None:
        from kdc.tools.bench.plot import check_format

        check_format(plot)
    cases = [Case(rows, tokens) for tokens in _numbers("--length", length) for rows in _numbers("--batch", batch)]
    parsed = [parse_subject(subject) for subject in subjects]
    reporter = Reporter()
    reporter.started("bench", "loads every subject three times")
    try:
        result = run_bench(
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

        draw(result, plot)
    _print_json(result.model_dump(mode="json")) if as_json else typer.echo(render(result))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def _numbers(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and least <= int(part) <= 100_000 for part in parts):
        raise InputError(f"{option} is not a list of whole numbers from {least} on", given=text, remedy="e.g. 1,8,32")
    return tuple(int(part) for part in parts)


STUDY = (
    Setting("recipe", str, "Distillation recipe: paper (default) or best.", "run"),
    Setting("data", Path, "Folder with the data in GLUE's layout (default: the hub).", "data"),
    MAX_TRAIN_ROWS,
    EPOCHS,
    TRAINING_DEVICE,
)


@app.command()
@takes(*STUDY)
def study(
    given: dict[str, Any],
    tasks: Annotated[str, _option("Names of GLUE tasks, or pydocs, separated by commas.")],
    out: Annotated[Path, _option("Directory of the study. The same one again goes on where it was cut off.")],
    families: Annotated[
        str, typer.Option(help="Model families, separated by commas: bert, roberta, deberta, minilm.")
    ] = "bert,roberta,deberta",
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, separated by commas: fft and lora train the teacher; kd-lora distils; student-lora "
            "and student-fft train the student on labels alone."
        ),
    ] = "fft,lora,kd-lora,student-lora,student-fft",
    ranks: Annotated[str, typer.Option(help="LoRA ranks, separated by commas.")] = "8",
    seeds: Annotated[
        str, typer.Option(help="Seeds, separated by commas; every training is done once for each.")
    ] = "1,2,3",
    engine: Annotated[
        str, typer.Option(help="local trains one cell after the other; ray trains them side by side on a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        _option("Address of the Ray cluster, or auto for the one that Ray finds (default: Ray on this machine alone)."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads of a training; with ray also the cores that it reserves (default: as the "
            "environment says; with ray 1).",
            min=1,
        ),
    ] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """The paper's tables: a grid of trainings, beside the published figures. Goes on where it was cut off."""
    from kdc.tools.study.grid import Grid
    from kdc.tools.study.study import study_for_people

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
    result = study_for_people(grid, engine=engine, address=address, threads=threads)
    files = {"files": result.files, "failed": result.failed}
    _print_json(files) if as_json else typer.echo("\n".join(result.files))
    if result.failed:
        raise KdcError("some cells failed", given="; ".join(result.failed), remedy="the same command tries them again")


@app.command(name="try")
def try_(
    artifact: Artifact,
    text: Annotated[str, typer.Argument(help="Text to classify.", show_default=False)],
    pair: Annotated[
        str | None, typer.Argument(help="Second text, where the task takes pairs.", show_default=False)
    ] = None,
    variant: Variant = None,
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


SERVE = (
    Setting("workers", int, "Worker processes, which share the port (default 1)."),
    Setting("device", str, "Where to run: auto (default; CUDA where it starts, else the CPU), cpu, cuda or tensorrt."),
    VARIANT,
    Setting("threads", int, "Threads of a worker's forward passes together (default: usable cores / workers)."),
    Setting("api-key-env", str, "Environment variable with the bearer token that requests must bring (default: none)."),
    ALLOW_FAILED,
    Setting(
        "drain-delay",
        float,
        "Seconds for which SIGTERM is followed by 503 answers before the service stops listening (default 2).",
        keys=("drain_delay_s",),
    ),
    *_settings(
        "",
        _LIMITS,
        ("max-body-bytes", int, "Largest body of a request, in bytes (default 2 MiB)."),
        ("max-bodies-bytes", int, "Largest sum of the bodies held at one time, in bytes (default 128 MiB)."),
        ("max-text-chars", int, "Longest text, in characters (default 200000)."),
        ("max-texts", int, "Most texts in a request (default 1024)."),
        ("max-queue-tokens", int, "Most tokens that may wait for a forward pass; beyond, 429 (default 65536)."),
        ("max-queue", float, "Longest expected wait, in seconds; beyond, 429 (default 1).", "max_queue_s"),
        (
            "max-batch-tokens",
            int,
            "Most tokens of a forward pass, padding included (default: 256 on a CPU, 4096 on a GPU).",
        ),
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
        typer.Argument(
            help="Artifacts to serve, as [NAME=]PATH or [NAME=]ADDRESS (see `kdc pull`); default: the newest "
            "one in runs/.",
            show_default=False,
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
    from kdc.serving.http import settings
    from kdc.serving.http.artifacts import newest

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # from here on there may be something to clean up

    if not artifacts and not os.environ.get("KDC_ARTIFACT"):
        artifacts = [str(newest())]
    launch.serve(settings.resolve({"artifact": ",".join(artifacts or []) or None} | given), host, port)


PREDICT = (
    Setting("text", str, "Name of the column with the text (default: as in training)."),
    Setting("text-pair", str, "Name of the column with the second text of a pair (default: as in training)."),
    Setting("prefix", str, "Prefix for the names of the new columns (default: none)."),
    Setting("all-scores", bool, "Add a column with the score of each class, not only of the best."),
    Setting("on-error", str, "What to do with a row that has no text: stop (default), or skip it."),
    Setting("errors", str, "File or URL for the list of skipped rows, in JSONL."),
    VARIANT,
    Setting(
        "threads",
        int,
        "Threads of all passes (default: all usable cores); with --engine ray, threads of one actor (default 1).",
        least=1,
    ),
    Setting("engine", str, "local (default) works in this process; ray in actors on a cluster, into a directory."),
    Setting("address", str, "Address of the Ray cluster, or auto (default: Ray on this machine alone)."),
    Setting("actors", int, "Number of Ray actors (default: as many as there are cores or GPUs).", least=1),
    Setting("force", bool, "Replace an existing output, and drop an unfinished job."),
    ALLOW_FAILED,
)


@app.command()
@takes(*PREDICT)
def predict(
    given: dict[str, Any],
    artifact: Artifact,
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="File, directory, pattern or URL; - is JSONL on standard input."),
    ],
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT", help=".parquet, .jsonl, .csv or .tsv, or a URL; - is JSONL on standard output."
        ),
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
        _print_json(result.to_json())
    else:
        sys.stderr.write(f"{result.summary}\n")


@app.command()
def evaluate(
    artifact: Artifact,
    data: Annotated[
        Path, typer.Option(help="File with labelled rows: .csv, .tsv, .jsonl or .parquet.", show_default=False)
    ],
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    separator: Separator = None,
    variant: Variant = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The metrics of an artifact on a labelled file, through the engine that serves."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kdc.tools.evaluate import evaluate_artifact, render

    columns = {"text": text, "text_pair": text_pair, "label": label, "separator": separator}
    evaluation = evaluate_artifact(artifact, data, columns=columns, variant=variant, device=_device(device))
    _print_json(evaluation.model_dump(mode="json")) if as_json else typer.echo(render(evaluation))


@app.command()
@takes(*LIMITS)
def verify(
    given: dict[str, Any],
    artifact: Artifact,
    data: Annotated[
        Path | None,
        _option("File with labelled rows to compare on (default: the quality is not measured again)."),
    ] = None,
    teacher: Annotated[
        str | None,
        _option("Hub id or path of the teacher, needed for rows that the artifact was not evaluated on."),
    ] = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    separator: Separator = None,
    expect_sha256: Sha256 = None,
    device: Annotated[
        str | None, _option("Where to measure: cpu, cuda or auto (default: where the contract was judged).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge an artifact's contract, or limits in its place, here: hashes, size, latency, and with --data the metric."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kdc.artifact.contract.text import render
    from kdc.tools.verify import verify_artifact

    judgement, before = verify_artifact(
        artifact,
        given=given,
        data=data,
        teacher=teacher,
        device=None if device is None else _device(device),
        expect_sha256=expect_sha256,
        columns={"text": text, "text_pair": text_pair, "label": label, "separator": separator},
    )
    found = judgement.model_dump(mode="json")
    _print_json(found) if as_json else typer.echo(render(judgement, before))
    _leave(judgement.verdict)


@app.command(name="inspect")
def inspect_(
    artifact: Artifact,
    expect_sha256: Sha256 = None,
    as_json: Json = False,
) -> None:
    """Manifest, lineage and metrics of an artifact, after checking every file's hash."""
    from kdc.artifact.folder import load_manifest

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
        str,
        typer.Argument(
            help="Where to send it: hf://owner/name, bento:NAME, s3://bucket/path or another URL, or a path.",
            show_default=False,
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace another artifact that is there already.")] = False,
    allow_failed: AllowFailed = False,
    public: Annotated[
        bool,
        typer.Option("--public", help="Make the hub repository public, where a new one is created (default: private)."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Send an artifact to the Hugging Face hub, BentoML's store, an object store or a path; only what is not there."""
    from kdc.artifact.stores.push import push_artifact

    result = push_artifact(artifact, target, force=force, allow_failed=allow_failed, public=public)
    if as_json:
        _print_json(result.model_dump(mode="json"))
        return
    done = f"{result.sent_bytes:,} of {result.bytes:,} bytes sent" if result.changed else "is there already"
    typer.echo(f"{result.target}: {done}, {result.files} files, SHA-256 {result.sha256}")


@app.command()
def pull(
    source: Annotated[
        str,
        typer.Argument(
            help="Where it is: hf://owner/name[@revision], bento:NAME[:VERSION], s3://bucket/path or another "
            "URL, or a path.",
            show_default=False,
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that will hold the artifact.", show_default=False)
    ],
    expect_sha256: Sha256 = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another artifact that is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch an artifact and verify it: it is in DIR whole, or not at all. Goes on where it was cut off."""
    from kdc.artifact.stores.pull import pull_artifact

    result = pull_artifact(source, folder, expect_sha256=expect_sha256, force=force)
    if as_json:
        _print_json(result.model_dump(mode="json"))
        return
    done = f"{result.received_bytes:,} of {result.bytes:,} bytes received, all hashes match"
    typer.echo(f"{folder}: {done if result.changed else 'is there already'}, SHA-256 {result.sha256}")


@app.command()
def tasks(as_json: Json = False) -> None:
    """The tasks that are known by name."""
    from kdc.pipeline.config.tasks import TASKS

    if as_json:
        _print_json({name: task.model_dump(mode="json") for name, task in TASKS.items()})
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
    hub: Annotated[bool, typer.Option(help="Also try to reach the Hugging Face hub (3 seconds at most).")] = True,
    as_json: Json = False,
) -> None:
    """Versions, execution providers and whether each really starts, CPU, quota, hub; and what to do."""
    from kdc.tools.doctor.diagnose import diagnose
    from kdc.tools.doctor.text import render

    report = diagnose(check_hub=hub)
    _print_json(report.model_dump(mode="json")) if as_json else typer.echo(render(report))


def _leave(verdict: str | None) -> None:
    """Exit with the code of a contract's verdict; go on where there is no contract, or it is kept."""
    from kdc.artifact.contract.terms import EXIT_CODES

    if verdict is not None and (code := EXIT_CODES[verdict]):
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
