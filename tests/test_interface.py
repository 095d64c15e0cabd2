"""What people and programs rely on, compared with lists that were made before the code had its present shape.

A list in tests/interface/ changes only together with CHANGELOG.md.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tiny_runs
import typer
from conftest import Finished
from typer.testing import CliRunner

import kdc.artifact.contract.terms as terms
from kdc.cli import app
from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.settings import Config
from kdc.serving.http.api.app import make_app
from kdc.serving.http.api.routes import describe
from kdc.serving.http.metrics import Metrics
from kdc.serving.http.settings import PREFIX, ServeSettings

LISTS = Path(__file__).parent / "interface"


def listed(name: str) -> set[str]:
    return lines(json.loads((LISTS / f"{name}.json").read_text(encoding="utf-8")))


def lines(value: Any, path: str = "") -> set[str]:
    """One line for each leaf, so that a comparison of two sets names what differs."""
    if isinstance(value, dict) and value:
        return set().union(*(lines(each, f"{path}: {key}") for key, each in value.items()))
    if isinstance(value, list) and value:
        return set().union(*(lines(each, path) for each in value))
    return {f"{path}: {value}".removeprefix(": ")}


def commands() -> dict[str, list[str]]:
    """Each command's arguments and options."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return {name: sorted(map(parameter, command.params)) for name, command in sorted(group.commands.items())}


def parameter(one: Any) -> str:
    """An argument by its name in capitals, an option by all its names; then what it takes."""
    is_argument = isinstance(one, typer.core.TyperArgument)
    parts = [str(one.name).upper() if is_argument else " / ".join([*one.opts, *one.secondary_opts])]
    if not is_argument and not one.is_flag:
        parts.append("VALUE")
    parts += ["required"] * one.required + ["repeated"] * (one.multiple or one.nargs != 1)
    return " ".join(parts)


def exit_codes() -> dict[str, int]:
    return {"KdcError": KdcError.exit_code, "InputError": InputError.exit_code} | terms.EXIT_CODES


def routes() -> list[str]:
    """Method and path of every route."""
    routes: list[Any] = make_app(ServeSettings(artifact="any")).routes
    return sorted(f"{method} {route.path}" for route in routes for method in route.methods)


def openapi() -> dict[str, Any]:
    """Of each operation its parameters, the types of its body, and the types and headers by status."""
    document = describe()

    def resolved(part: Any) -> Any:
        if "$ref" not in part:
            return part
        _, section, name = part["$ref"].removeprefix("#/").split("/")
        return document["components"][section][name]

    def shape(operation: Any) -> dict[str, Any]:
        responses = {status: resolved(response) for status, response in operation["responses"].items()}
        return {
            "parameters": sorted(
                f"{each['in']} {each['name']}" for each in map(resolved, operation.get("parameters", []))
            ),
            "body": sorted(operation.get("requestBody", {}).get("content", {})),
            "responses": {
                status: sorted([*response.get("content", {}), *response.get("headers", {})])
                for status, response in sorted(responses.items())
            },
        }

    return {
        f"{method} {path}": shape(item[method])
        for path, item in sorted(document["paths"].items())
        for method in ("get", "head", "post")
        if method in item
    }


def metrics() -> dict[str, list[str]]:
    """Type and labels of each metric."""
    collectors: Any = (
        Metrics().registry._collector_to_names
    )  # their public side names no labels before there are values
    known = [collector for collector in collectors if hasattr(collector, "_labelnames")]
    families: Any = Metrics().collect()
    of_manifests = {each.name: [each.type, *each._labelnames] for each in families}
    return of_manifests | {each._name: [each._type, *each._labelnames] for each in known}


def settings() -> dict[str, Any]:
    """Every setting of `kdc compress` and of `kdc serve` with its default."""
    of_serving = {PREFIX + name.upper(): field.default for name, field in ServeSettings.model_fields.items()}
    return {"compress": Config().model_dump(mode="json"), "serve": json.loads(json.dumps(of_serving, default=str))}


def keys(value: Any, depth: int = 3, path: str = "") -> set[str]:
    """Dotted paths of all keys down to a depth; items of a list are one, written []."""
    if isinstance(value, dict) and depth and not path.endswith(".packages"):
        below = (keys(each, depth - 1, f"{path}.{key}") for key, each in value.items())
        return {f"{path}.{key}".lstrip(".") for key in value}.union(*below)
    if isinstance(value, list):
        return set().union(*(keys(each, depth, f"{path}[]") for each in value))
    return set()


def printed(finished: Finished, folder: Path) -> dict[str, list[str]]:
    """Keys of what each command prints with `--json`."""
    artifact, data = str(finished.artifact), str(finished.folder / "eval.csv")
    shutil.copytree(finished.folder / "run", folder / "run", symlinks=True)
    again = tiny_runs.command(
        finished.folder, finished.teacher, "--set", "run.controls=true", "--set", "export.teacher=true"
    )
    again = again[again.index("compress") :]
    again[again.index("--out") + 1] = str(folder / "run")
    calls = (
        ["bench", artifact, "--batch", "1", "--length", "8", "--rounds", "1", "--seconds", "0.01"],
        again,
        ["doctor", "--no-hub"],
        ["evaluate", artifact, "--data", data],
        ["export", artifact, str(folder / "image"), "--to", "oci"],
        ["inspect", artifact],
        ["predict", artifact, data, str(folder / "scores.jsonl"), "--prefix", "our_"],
        ["pull", artifact, str(folder / "pulled")],
        ["push", artifact, str(folder / "pushed")],
        ["report", str(folder / "run")],
        ["tasks"],
        ["try", artifact, "w1 w7", "w9"],
        ["verify", artifact, "--max-size-mb", "100", "--max-drop", "50", "--data", data],
    )
    answers = {}
    for arguments in calls:
        done = CliRunner().invoke(app, [*arguments, "--json"])
        assert done.exit_code in {0, *terms.EXIT_CODES.values()}, (arguments, done.output, done.exception)
        # Below its first level, the doctor's answer is about the machine.
        depth = 1 if arguments[0] == "doctor" else 3
        answers[arguments[0]] = sorted(keys(json.loads(done.stdout), depth))
    return answers


def written(run: Path) -> dict[str, list[str]]:
    """Keys of the JSON files that a run leaves in its directory and in its stages' folders."""
    files = [run / "config.json", *run.glob("*/*.json")]
    ours = [file for file in files if file.parent.name != "artifact" and file.name != "tokenizer.json"]
    return {
        file.relative_to(run).as_posix(): sorted(keys(unnamed(file, json.loads(file.read_text(encoding="utf-8")))))
        for file in sorted(ours)
    }


def unnamed(file: Path, value: Any) -> Any:
    """What a file holds, without the names of int8 candidates: which are tried depends on the CPU, and which of them is
    compared in batches on what was measured."""
    if file.name == "candidates.json":
        return [*value.values()]
    if (file.parent.name, file.name) == ("quantize", "stage.json"):
        value["metrics"]["candidates"] = [*value["metrics"]["candidates"].values()]
    return value


def artifact_files(artifact: Path) -> dict[str, list[str]]:
    """What is in an artifact, and the arrays of its evaluation."""
    with np.load(artifact / "evaluation.npz") as arrays:
        return {"files": sorted(path.name for path in artifact.iterdir()), "evaluation.npz": sorted(arrays.files)}


def test_every_command_has_the_listed_options() -> None:
    assert lines(commands()) == listed("commands")


def test_exit_codes_are_the_listed() -> None:
    assert lines(exit_codes()) == listed("exit_codes")


def test_routes_are_the_listed() -> None:
    assert lines(routes()) == listed("routes")


def test_the_description_has_the_listed_operations() -> None:
    assert lines(openapi()) == listed("openapi")


def test_metrics_are_the_listed() -> None:
    assert lines(metrics()) == listed("metrics")


def test_settings_and_their_defaults_are_the_listed() -> None:
    assert lines(settings()) == listed("settings")


def test_json_outputs_have_the_listed_keys(finished: Finished, tmp_path: Path) -> None:
    assert lines(printed(finished, tmp_path)) == listed("printed")


def test_a_run_writes_the_listed_json(finished: Finished) -> None:
    assert lines(written(finished.folder / "run")) == listed("written")


def test_an_artifact_holds_the_listed_files(finished: Finished) -> None:
    assert lines(artifact_files(finished.artifact)) == listed("artifact")
