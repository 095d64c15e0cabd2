"""The command line `kdc`. Heavy imports wait for the command. Long option tables lie in the room they set."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdc.artifact.artifact_options import (
    ALLOW_FAILED,
    COLUMNS,
    LIMITS,
    REPLACE,
    SHA256,
    SLICE,
    TERMS,
    VARIANT,
    VERIFY_KEY,
)
from kdc.common.command_options import Setting, argument, option, settings, taken, takes
from kdc.common.errors import InputError, KdcError, installing, printable
from kdc.pipeline.config.compress_options import COMPRESS, RUN
from kdc.serving.bulk.predict_options import PREDICT
from kdc.serving.http.serve_options import SERVE
from kdc.tools.label.label_options import LABEL

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make large text classifiers small, fast and provably good, and serve them.",
)

_STAGES = (
    "data, vocabulary, candidates, baselines, teacher, label_errors, targets, search, student, merge, export, "
    "quantize, uncut, cascade, controls, evaluate or package"
)

Artifact = Annotated[Path, argument("Folder of an artifact, for example runs/qnli/artifact.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout; everything else goes to stderr.")
]
Device = Annotated[str, typer.Option(help="Where to run: auto (CUDA if it starts, else the CPU), cpu or cuda.")]
Variant = Annotated[str | None, option(VARIANT.help)]
Set = Annotated[
    list[str] | None,
    option("One setting, section.key=value, as `kdc config` names it. Repeatable.", "--set", panel=RUN),
]


@app.command()
@takes(*COMPRESS)
def compress(
    given: dict[str, Any],
    frontier: Annotated[
        bool,
        option(
            "Make ten or so students instead of one, from the teacher itself to no layers, each with an artifact, and "
            "a page that compares them. --max-hours bounds all their trainings together.",
            "--frontier",
            panel=RUN,
        ),
    ] = False,
    config: Annotated[
        Path | None, option("TOML file with settings; `kdc config` prints one with all of them.", panel=RUN)
    ] = None,
    set_: Set = None,
    from_: Annotated[str | None, option(f"Redo this stage and all later ones: {_STAGES}.", "--from", panel=RUN)] = None,
    until: Annotated[str | None, option("Stop after this stage (the same names).", panel=RUN)] = None,
    as_json: Json = False,
) -> None:
    """Make a small ONNX model of a labelled task, and prove what it kept of its teacher.

    \b
    kdc compress --train mails.csv --text text --label category --family minilm --max-drop 2
    kdc compress --task pydocs --family minilm

    The same command again resumes the run. Exit codes: 0 pass, 3 fail, 4 not shown;
    2 wrong input, or a limit out of reach."""
    from kdc.artifact.contract.terms import EXIT_CODES
    from kdc.pipeline.config import resolve

    limits = {f"contract.{name}": value for name, value in taken(given, LIMITS).items()}
    first, *more = given.pop("teacher.teacher", None) or [None]
    teachers = {"teacher.model": first, "teacher.more": tuple(more) or None}
    resolved = resolve.resolve(
        flags=resolve.layer_of(given | limits | teachers),
        sets=resolve.parse_sets(set_ or []),
        file=resolve.read_file(config) if config else {},
    )
    from kdc.pipeline import compress as runs

    command = runs.command_to_go_on(sys.argv[1:])
    if frontier:
        if until is not None:
            raise InputError("a frontier has no last stage", given=f"--until {until}", remedy="drop it, or --frontier")
        made = runs.frontier_for_people(resolved, start_from=from_, command=command)
        _print(as_json, made.to_json(), runs.render_frontier(made))
        return
    result = runs.compress_for_people(resolved, start_from=from_, until=until, command=command)
    if not result.stages:  # only one process of torchrun prints
        return
    _print(as_json, result.to_json(), runs.render(result))
    raise typer.Exit(EXIT_CODES[result.verdict or "pass"])


@app.command()
def report(
    run: Annotated[Path, argument("Run directory of a finished `kdc compress`.")],
    no_examples: Annotated[bool, option("Quote no rows in the report.", "--no-examples")] = False,
    as_json: Json = False,
) -> None:
    """Write the proof again as a page: report.html, report.json and report.md in the run's directory."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kdc.pipeline.report.page import write_report

    facts = write_report(run, examples=not no_examples)
    _print(as_json, facts.to_json(), f"{facts.verdict}\nreport: {run / 'report.html'}")


@app.command()
@takes(
    Setting("rounds", int, "Rounds over all subjects and batch sizes; results are medians (default 5).", least=1),
    Setting("seconds", float, "Seconds of each measurement (default 0.5).", least=0.01),
)
def bench(
    given: dict[str, Any],
    subjects: Annotated[
        list[str],
        argument(
            "What to measure, as [NAME=]PATH[@VARIANT]: artifacts, or folders with Hugging Face models. "
            "The others are compared with the first."
        ),
    ],
    batch: Annotated[str, typer.Option(help="Batch sizes, in rows, separated by commas.")] = "1,8,32",
    length: Annotated[str, typer.Option(help="Numbers of tokens in a row, separated by commas.")] = "16,64,128",
    threads: Annotated[
        str | None,
        option(
            "Threads of a forward pass; with several numbers, separated by commas, every subject is measured with "
            "each of them (default: all cores that the process may use)."
        ),
    ] = None,
    device: Device = "auto",
    profile: Annotated[bool, option("Also show where the time of a pass goes, by operator.", "--profile")] = False,
    plot: Annotated[Path | None, option("File for a picture of the result: .svg, .png or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Compare latency, throughput, cold start, memory and share of the CPU's peak with the first subject's."""
    from kdc.common.progress import Reporter
    from kdc.tools.bench.result import render
    from kdc.tools.bench.run import Case, parse_subject, run_bench

    if plot is not None:
        from kdc.tools.bench.plot import check_format, draw

        check_format(plot)
    cases = [Case(rows, tokens) for tokens in _numbers("--length", length) for rows in _numbers("--batch", batch)]
    parsed = [parse_subject(subject) for subject in subjects]
    given["threads"] = () if threads is None else _numbers("--threads", threads)
    with Reporter() as reporter:
        reporter.started("bench", "loads every subject three times")
        result = run_bench(parsed, cases, device=_device(device), progress=reporter.progress, **given)
    text = render(result)
    if profile:
        from kdc.tools.bench.profile import profiled, render_profiles

        result = profiled(result)
        text += "\n\n" + render_profiles(result.profiles)
    if plot is not None:
        draw(result, plot)
    _print(as_json, result, text)


def _numbers(name: str, text: str) -> list[int]:
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(1 <= number <= 100_000 for number in numbers):
        raise InputError(f"{name} is not a list of whole numbers from 1 on", given=text, remedy="e.g. 1,8,32")
    return numbers


@app.command(name="try")
def try_(
    artifact: Artifact,
    text: Annotated[str, argument("Text to classify.")],
    pair: Annotated[str | None, argument("Second text, if the task takes pairs.")] = None,
    variant: Variant = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Classify one text."""
    from kdc.tools.one_text import answer

    row = text if pair is None else (text, pair)
    document, words = answer(artifact, row, variant=variant, device=_device(device))
    _print(as_json, document, words)


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
    """Serve artifacts over HTTP. All options but --host and --port are also KDC_* variables, listed in
    docs/reference/service-settings.md."""
    # A container's first process ignores signals without a handler, and imports take seconds. An exception while a C
    # extension is imported would become ImportError, so the handler ends the process.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from kdc.serving import launch
    from kdc.serving.http.artifacts import newest
    from kdc.serving.http.settings import resolve

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # from here on, cleanup may be needed

    if not artifacts and not os.environ.get("KDC_ARTIFACT"):
        artifacts = [str(newest())]
    launch.serve(resolve({"artifact": ",".join(artifacts or []) or None} | given), host, port)


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
    """Label and score a table of any size. Columns stay; label and score are added. The same command again resumes."""
    from kdc.serving.bulk.predict import predict as predict_table
    from kdc.serving.bulk.request import PredictRequest

    request = PredictRequest(artifact=artifact, source=source, output=output, device=_device(device), **given)
    result = predict_table(request)
    if as_json and output != "-":
        _print(as_json, result.to_json(), result.summary)
    else:
        sys.stderr.write(f"{result.summary}\n")


@app.command()
@takes(*LABEL)
def label(
    given: dict[str, Any],
    spec: Annotated[Path, argument("TOML file: the model, the question and the prices. --init writes one.")],
    files: Annotated[
        list[str] | None,
        argument(
            "The table to label (file, directory or pattern) and the file to write. With --traces: OUT alone.", "IN OUT"
        ),
    ] = None,
    init: Annotated[bool, option("Write a commented SPEC, and stop.", "--init")] = False,
    as_json: Json = False,
) -> None:
    """Ask a large model for the labels of a table. `kdc compress --train OUT --teacher-scores OUT` takes the result.

    \b
    kdc label --init spec.toml
    kdc label spec.toml mails.csv labelled.csv --dry-run
    kdc label spec.toml mails.csv labelled.csv --max-usd 5

    The same command again resumes; no recorded answer is paid twice."""
    from kdc.artifact.contract.terms import EXIT_CODES
    from kdc.tools.label import command
    from kdc.tools.label.spec import write_template

    if init:
        write_template(spec)
        _print(as_json, {"spec": str(spec)}, f"{spec}: fill it in, then kdc label {spec} IN OUT --dry-run")
        return
    document, words = command.label(spec, tuple(files or ()), **given)
    _print(as_json, document, words)
    verdict = getattr(getattr(document, "gap", None), "verdict", None)
    raise typer.Exit(EXIT_CODES[verdict or "pass"])


@app.command()
@takes(*COLUMNS, SLICE)
def evaluate(
    columns: dict[str, Any],
    artifact: Artifact,
    data: Annotated[Path, option("File with labelled rows: .csv, .tsv, .jsonl, .parquet or .xlsx.")],
    variant: Variant = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compute an artifact's metrics on a labelled file, through the serving engine."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kdc.tools.labelled import evaluate_artifact, render

    slices = columns.pop("slice", ())
    evaluation = evaluate_artifact(
        artifact, data, columns=columns, slices=slices, variant=variant, device=_device(device)
    )
    _print(as_json, evaluation, render(evaluation))


VERIFY = (
    Setting("data", Path, "File with labelled rows to compare on (default: the quality is not measured again)."),
    Setting(
        "teacher",
        str,
        "Hub id or path of the teacher, needed for rows that the artifact was not evaluated on; with --unlabelled also "
        "the folder of an artifact.",
    ),
    SHA256,
)
_LABELS_PANEL = "Without a labelled file: label only texts the models answer differently"
_MOST_LABELS = "Write at most this many texts, drawn at random (default: all)."
TO_LABEL = (
    *settings(
        "",
        _LABELS_PANEL,
        ("unlabelled", str, "File, directory, pattern or URL with rows without labels (kdc compress: --unlabeled)."),
        ("teacher-column", str, "Column of that file with the teacher's answers (instead of --teacher)."),
        ("to-label", Path, "The .csv file to write: texts that the models answer differently."),
    ),
    Setting("most-labels", int, _MOST_LABELS, panel=_LABELS_PANEL, least=1),
)
LABELLED = settings(
    "", _LABELS_PANEL, ("labelled", Path, "The file that --to-label wrote, with labels: gives the verdict.")
)


@app.command()
@takes(*TERMS, *COLUMNS, *VERIFY, *TO_LABEL, *LABELLED)
def verify(
    given: dict[str, Any],
    artifact: Artifact,
    device: Annotated[
        str | None, option("Where to measure: cpu, cuda or auto (default: as the contract was judged).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge an artifact's contract here, or other limits: hashes, size, latency, and with --data the metric.

    Without a labelled file: docs/how-to/verify-without-labels.md."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from kdc.artifact.contract.terms import EXIT_CODES
    from kdc.artifact.contract.text import render
    from kdc.tools.verify import verify_artifact

    how = taken(given, VERIFY) | {"device": None if device is None else _device(device)}
    how["columns"] = taken(given, COLUMNS)
    texts, labelled = taken(given, TO_LABEL), taken(given, LABELLED)
    if texts:
        from kdc.tools.unlabelled import render as render_texts
        from kdc.tools.unlabelled import texts_to_label

        written = texts_to_label(artifact, given=given, **how, **texts)
        _print(as_json, written, render_texts(written, artifact))
        return
    judgement, before = verify_artifact(artifact, given=given, **how, **labelled)
    _print(as_json, judgement, render(judgement, before))
    raise typer.Exit(EXIT_CODES[judgement.verdict])


@app.command(name="inspect")
@takes(SHA256, VERIFY_KEY)
def inspect_(given: dict[str, Any], artifact: Artifact, as_json: Json = False) -> None:
    """Show an artifact's manifest, lineage and metrics, after checking every file's hash."""
    from kdc.artifact.folder import load_manifest
    from kdc.artifact.inspection import render
    from kdc.artifact.signature import signed_sha256_of

    keys, expected = given.get("verify_key"), given.get("expect_sha256")
    manifest = load_manifest(artifact, expect_sha256=signed_sha256_of(artifact, keys, expected))
    _print(as_json, manifest, render(manifest) + ("\n\nsigned by a given key" if keys else ""))


@app.command()
@takes(
    REPLACE,
    ALLOW_FAILED,
    Setting("public", bool, "Make the hub repository public if push creates it (default: private)."),
    Setting("sign", str, "Private Ed25519 key to sign it with: a PEM file, or env:NAME.", keys=("sign_key",)),
)
def push(
    given: dict[str, Any],
    artifact: Artifact,
    target: Annotated[
        str, argument("Where to send it: hf://owner/name, bento:NAME, s3://bucket/path or another URL, or a path.")
    ],
    as_json: Json = False,
) -> None:
    """Send an artifact to the Hugging Face hub, BentoML's store, an object store or a path. Skips files already
    there."""
    from kdc.artifact.stores.transfer import push_artifact

    result = push_artifact(artifact, target, **given)
    done = f"{result.sent_bytes:,} of {result.bytes:,} bytes sent" if result.changed else "is there already"
    _print(as_json, result, f"{result.target}: {done}, {result.files} files, SHA-256 {result.sha256}")


@app.command()
@takes(SHA256, VERIFY_KEY, REPLACE)
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
    """Fetch and verify an artifact. DIR holds all of it or nothing. The same command again resumes."""
    from kdc.artifact.stores.transfer import pull_artifact

    result = pull_artifact(source, folder, **given)
    done = f"{result.received_bytes:,} of {result.bytes:,} bytes received, all hashes match"
    done += ", signed by a given key" if given.get("verify_key") else ""
    _print(as_json, result, f"{folder}: {done if result.changed else 'is there already'}, SHA-256 {result.sha256}")


@app.command()
@takes(
    Setting("name", str, "Name of a Triton model or page (default: the task's), or tag of an image (default latest)."),
    Setting("variant", str, "fp32, int8 or fp16 of a Triton model or a web page (default: the one that CPUs load)."),
    Setting("assets", Path, "Folder with a web page's libraries as `npm pack` writes them (default: fetched)."),
    Setting("example", list[str], "A text that the hub offers to try, of --to hub. Repeatable."),
    ALLOW_FAILED,
)
def export(
    given: dict[str, Any],
    artifact: Artifact,
    target: Annotated[
        str,
        argument(
            "Triton's model repository; folder of an image, a page or a repository; or MLflow's sqlite:///FILE.db."
        ),
    ],
    to: Annotated[
        str,
        option(
            "triton: a model of its ONNX Runtime backend, which takes token ids; oci: an image layout with the "
            "artifact under /models, for registries, Kubernetes and KServe; mlflow: a run and a pyfunc model; "
            "web: a page that runs the model in the browser; hub: a model repository, as transformers.js, Optimum and "
            "others look for it.",
            "--to",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Export an artifact as a Triton model, an OCI image, a web page or a model repository, or to MLflow."""
    from kdc.tools.export.export import export_artifact

    result = export_artifact(artifact, target, form=to, **given)
    done = f"{result.place}: {result.bytes:,} bytes, artifact SHA-256 {result.sha256}\nnext: {result.next}"
    _print(as_json, result._asdict(), done)


@app.command()
def tasks(as_json: Json = False) -> None:
    """List the tasks known by name."""
    from kdc.pipeline.config.tasks import TASKS, render

    _print(as_json, TASKS, render())


@app.command()
def config() -> None:
    """Print every setting with default and meaning, as a TOML file for --config."""
    from kdc.pipeline.config.resolve import render_defaults

    typer.echo(render_defaults())


@app.command()
def doctor(
    hub: Annotated[bool, typer.Option(help="Also try to reach the Hugging Face hub (3 seconds at most).")] = True,
    as_json: Json = False,
) -> None:
    """Check versions, execution providers (whether each really starts), CPU, quota and hub, and say what to do."""
    from kdc.tools.doctor.diagnose import diagnose
    from kdc.tools.doctor.report import render

    report = diagnose(check_hub=hub)
    _print(as_json, report, render(report))


def _device(name: str) -> Any:
    if name not in ("auto", "cpu", "cuda"):
        raise InputError("no such device", given=name, remedy="auto, cpu or cuda")
    return name


def _print(as_json: bool, document: Any, text: str) -> None:
    if as_json:
        text = json.dumps(document, indent=2, default=lambda model: model.model_dump(mode="json"))
    typer.echo(printable(text))


def main() -> None:
    try:
        app()
        return
    except KdcError as error:
        refused = error
    except OSError as error:
        from kdc.common.files import refusal

        if (of_files := refusal(error)) is None:
            raise
        refused = of_files
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "kdc":
            raise
        what = "this command needs more than the serving install"
        refused = KdcError(what, given=f"no module {error.name}", remedy=installing("compress"))
    sys.stderr.write(f"error: {printable(str(refused))}\n")
    if "--json" in sys.argv:
        given = None if refused.given is None else str(refused.given)
        document = {"code": refused.code, "what": refused.what, "given": given, "remedy": refused.remedy}
        _print(True, {"error": document, "exit_code": refused.exit_code}, "")
    sys.exit(refused.exit_code)
