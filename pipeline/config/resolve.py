"""Resolves settings. Precedence: flags, `--set`, file, presets, defaults."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdc.artifact.artifact_options import TERMS
from kdc.artifact.question_forms import description_of
from kdc.common.errors import InputError
from kdc.pipeline.config.compress_options import COMPRESS
from kdc.pipeline.config.labelled import read_description
from kdc.pipeline.config.presets import CUTS, FAMILIES, RECIPES, TASK_PRESETS, method_rates
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.student_kinds import CHECKPOINT, kind_of
from kdc.pipeline.config.tasks import task_key

Layer = dict[str, Any]  # settings nested by section
_HELP = {key: option.help for option in COMPRESS for key in option.sets}
_HELP |= {f"contract.{key}": option.help for option in TERMS for key in option.sets}


def settings_of(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(Dotted key, default, description or its option's help) of each setting."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_of(field.annotation, f"{prefix}{name}.")
        else:
            help = _HELP.get(prefix + name, "")
            meaning = field.description or help[:1].lower() + help[1:].removesuffix(".")
            yield f"{prefix}{name}", field.default, meaning


def parse_sets(items: list[str]) -> Layer:
    """Parse items such as `student.lora.r=16`; values that are not TOML are text."""
    layer: Layer = {}
    for item in items:
        key, sign, text = item.partition("=")
        if not sign or not key.strip():
            raise InputError("--set wants section.key=value", given=item, remedy="for example --set student.lora.r=16")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        _put(layer, key.strip(), value)
    return layer


def read_file(path: Path) -> Layer:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        remedy = f"check --config ({error.strerror})"
        raise InputError("cannot read the config file", given=path, remedy=remedy) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        what = f"the config file is not valid TOML: {error}"
        raise InputError(what, given=path, remedy="`kdc config` prints a valid example") from None


def layer_of(flags: Mapping[str, Any]) -> Layer:
    """Nest flags by dotted key; drop None."""
    layer: Layer = {}
    for key, value in flags.items():
        if value is not None:
            _put(layer, key, value)
    return layer


def layer_of_keywords(keywords: Mapping[str, Any]) -> Layer:
    """Take settings that one section alone has, and whole sections: `{"task": "qnli", "student": {"epochs": 2}}`.

    Raises:
        InputError: the name is unknown or ambiguous.
    """
    layer: Layer = {}
    keys: dict[str, list[str]] = {}  # by setting name
    for key, _, _ in settings_of():
        keys.setdefault(key.rpartition(".")[2], []).append(key)
    for name, value in keywords.items():
        if name in Config.model_fields and isinstance(value, Mapping):
            layer = _merge(layer, {name: dict(value)})
        elif name not in keys:
            nearest = difflib.get_close_matches(name, keys, n=1)
            remedy = f"did you mean {nearest[0]}? " if nearest else ""
            remedy += "`kdc config` prints them all"
            raise InputError("there is no setting of this name", given=name, remedy=remedy)
        elif len(keys[name]) > 1:
            given = f"{name}: {', '.join(keys[name])}"
            remedy = f"name the section: {keys[name][0].partition('.')[0]}={{{name!r}: {value!r}}}"
            raise InputError("several sections have a setting of this name", given=given, remedy=remedy)
        else:
            _put(layer, keys[name][0], value)
    return layer


def resolve(*, flags: Layer, sets: Layer, file: Layer) -> Config:
    """Merge and validate the layers; InputError lists all mistakes."""
    asked = _merge(file, sets, flags)
    try:
        presets = _presets(asked)
        config = Config.model_validate(_merge(presets, asked))
        if own := config.student.training_beside(CHECKPOINT):  # presets assume a student with layers
            config = Config.model_validate(_merge(presets, {"student": own}, asked))
        return config
    except ValidationError as error:
        unknown_first = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        problems = list(dict.fromkeys(line for item in unknown_first for line in _mistakes(item, error.errors())))
        raise InputError(
            f"{len(problems)} wrong setting{'s' * (len(problems) > 1)}:\n    " + "\n    ".join(problems),
            remedy="`kdc config` prints every setting with its default and meaning",
        ) from None


def _presets(asked: Layer) -> Layer:
    names = ("run", "data", "teacher", "student")
    run, data, teacher, student = (asked[name] if isinstance(asked.get(name), dict) else {} for name in names)
    family = run.get("family") or (None if teacher.get("model") else "bert")
    recipe = str(run.get("recipe") or "best")
    methods = {"teacher": str(teacher.get("method")), "student": str(student.get("method"))}
    return _merge(
        {"student": {"model": CUTS[recipe]}} if recipe in CUTS else {},
        FAMILIES.get(str(family), {}),
        RECIPES.get(recipe, {}),
        {section: method_rates(recipe, section, method) for section, method in methods.items()},
        TASK_PRESETS.get(task_key(str(data.get("task"))), {}),
        {"contract": {"search": "off"}} if student.get("model") else {},  # a named student is not searched for
        {} if kind_of(str(student.get("model") or "teacher")).is_of_teacher else {"student": {"vocabulary": None}},
        {"run": {"family": family}} if family else {},
        _of_labelled(data.get("train")),
    )


def _of_labelled(train: Any) -> Layer:
    description = read_description(train)
    if description is None:
        return {}
    return {"data": {"text": description.text, "label": "label"}, "operating": {"question": description_of(train)}}


def _merge(*layers: Layer) -> Layer:
    merged: Layer = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _put(layer: Layer, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = layer.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError("a setting is used as a section", given=key, remedy="`kdc config` prints every setting")
        layer = inner
    layer[name] = value


def _mistakes(item: ErrorDetails, every: Sequence[ErrorDetails]) -> list[str]:
    """A union's alternatives are one mistake; each key of an unknown section is one."""
    key = _key(item)
    known = [setting for setting, _, _ in settings_of()]
    if item["type"] != "extra_forbidden":
        setting = next((name for name in known if f"{key}.".startswith(f"{name}.")), key)
        same = [other for other in every if f"{_key(other)}.".startswith(f"{setting}.")]
        messages = "; or: ".join(dict.fromkeys(error["msg"] for error in same))
        given = min(same, key=lambda error: len(error["loc"]))["input"]
        return [f"{setting}: {messages} (given: {given!r})"]
    problems = []
    for unknown in [f"{key}.{inner}" for inner in item["input"]] if isinstance(item["input"], dict) else [key]:
        by_name = [setting for setting in known if setting.rpartition(".")[2] == unknown.rpartition(".")[2]]
        nearest = by_name or difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
        problems.append(f"unknown setting {unknown}" + (f" (did you mean {nearest[0]}?)" if nearest else ""))
    return problems


def _key(item: ErrorDetails) -> str:
    return ".".join(str(part) for part in item["loc"])


def render_defaults() -> str:
    """All settings as TOML comments, since a file wins over presets."""
    lines: list[str] = []
    for section, settings in groupby(settings_of(), key=lambda setting: setting[0].rpartition(".")[0]):
        lines += ["", f"[{section}]"]
        for key, default, meaning in settings:
            value = "" if default is None else f" {json.dumps(default)}"
            lines.append(f"# {key.rpartition('.')[2]} ={value}  # {meaning}")
    return "\n".join(lines).strip()
