"""Makes one run's settings (`settings.py`) from flags, `--set`, a file and presets.

A flag wins over `--set`, `--set` over the file, the file over presets, and presets over defaults. `resolve` merges
these layers, refuses unknown keys with the nearest valid name, and reports all mistakes at once.
"""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdc.common.errors import InputError
from kdc.pipeline.config.presets import CUTS, FAMILIES, RECIPES, TASK_PRESETS, method_rates
from kdc.pipeline.config.settings import Config
from kdc.pipeline.config.student_kinds import CHECKPOINT

Layer = dict[str, Any]  # settings by name, nested by section


def settings_of(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every setting as (dotted key, default, meaning), sections in order."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.default, field.description or ""


def parse_sets(items: list[str]) -> Layer:
    """Make a layer of `["student.lora.r=16", ...]`. A value that is no TOML is taken as plain text.

    Raises:
        InputError: an item has no `=` or no key.
    """
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
    """Read a TOML file as a layer.

    Raises:
        InputError: the file is missing, unreadable, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        remedy = f"check --config ({error.strerror})"
        raise InputError("cannot read the config file", given=path, remedy=remedy) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        what = f"the config file is not valid TOML: {error}"
        raise InputError(what, given=path, remedy="`kdc config` prints a valid example") from None


def layer_of(flags: Mapping[str, Any]) -> Layer:
    """Make a layer of flags by dotted key. Flags that are None were not given, and are left out."""
    layer: Layer = {}
    for key, value in flags.items():
        if value is not None:
            _put(layer, key, value)
    return layer


def layer_of_keywords(keywords: Mapping[str, Any]) -> Layer:
    """Keyword arguments of Python as a layer: `{"task": "qnli", "student": {"epochs": 2}, "max_drop": 1.0}`.

    A keyword is the name of a setting that one section alone has, or the name of a section, whose value is then a
    mapping of its settings.

    Raises:
        InputError: no setting has that name, or several sections have.
    """
    layer: Layer = {}
    keys = [key for key, _, _ in settings_of()]
    for name, value in keywords.items():
        if name in Config.model_fields and isinstance(value, Mapping):
            layer = _merge(layer, {name: dict(value)})
            continue
        homes = [key for key in keys if key.rpartition(".")[2] == name]
        if len(homes) > 1:
            given = f"{name}: {', '.join(homes)}"
            remedy = f"name the section: {homes[0].partition('.')[0]}={{{name!r}: {value!r}}}"
            raise InputError("several sections have a setting of this name", given=given, remedy=remedy)
        if not homes:
            nearest = difflib.get_close_matches(name, [key.rpartition(".")[2] for key in keys], n=1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            remedy = f"{hint}`kdc config` prints them all"
            raise InputError("there is no setting of this name", given=name, remedy=remedy)
        _put(layer, homes[0], value)
    return layer


def resolve(*, flags: Layer, sets: Layer, file: Layer) -> Config:
    """Merge the layers into the run's settings.

    Raises:
        InputError: lists every unknown key and wrong value.
    """
    asked = _merge(_merge(file, sets), flags)
    try:
        presets = _presets(asked)
        config = Config.model_validate(_merge(presets, asked))
        if own := config.student.training_beside(CHECKPOINT):  # the presets are for students with layers
            config = Config.model_validate(_merge(_merge(presets, {"student": own}), asked))
        return config
    except ValidationError as error:
        unknown_first = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        problems = list(dict.fromkeys(line for item in unknown_first for line in _mistakes(item, error.errors())))
        raise InputError(
            f"{len(problems)} wrong setting{'s' * (len(problems) > 1)}:\n    " + "\n    ".join(problems),
            remedy="`kdc config` prints every setting with its default and meaning",
        ) from None


def _presets(asked: Layer) -> Layer:
    """The layer of what recipe, family and task set unless the person does."""
    run, data, teacher = (_section(asked, name) for name in ("run", "data", "teacher"))
    family = run.get("family") or (None if teacher.get("model") else "bert")
    recipe = str(run.get("recipe") or "best")
    task = str(data.get("task") or "").lower().replace("-", "").replace("_", "")
    cut = {"student": {"model": CUTS[recipe]}} if recipe in CUTS else {}
    layer = _merge(_merge(cut, FAMILIES.get(str(family), {})), RECIPES.get(recipe, {}))
    for section in ("teacher", "student"):
        layer = _merge(layer, {section: method_rates(recipe, section, str(_section(asked, section).get("method")))})
    layer = _merge(layer, TASK_PRESETS.get(task, {}))
    if _section(asked, "student").get("model"):  # a person who names a student wants that one
        layer = _merge(layer, {"contract": {"search": "off"}})
    return _merge(layer, {"run": {"family": family}} if family else {})


def _section(layer: Layer, name: str) -> Layer:
    value = layer.get(name)
    return value if isinstance(value, dict) else {}


def _merge(below: Layer, above: Layer) -> Layer:
    """A new layer with the keys of both; where both have one, `above` wins."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
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
    """One of pydantic's errors in words; an unknown section is one mistake for each of its keys. A setting that may be
    of several kinds has an error for each, and they are one mistake."""
    key = _key(item)
    known = [other for other, _, _ in settings_of()]
    if item["type"] != "extra_forbidden":
        setting = next((other for other in known if f"{key}.".startswith(f"{other}.")), key)
        same = [each for each in every if f"{_key(each)}.".startswith(f"{setting}.")]
        messages = "; or: ".join(dict.fromkeys(each["msg"] for each in same))
        given = min(same, key=lambda each: len(each["loc"]))["input"]
        return [f"{setting}: {messages} (given: {given!r})"]
    problems = []
    for leaf in [f"{key}.{inner}" for inner in item["input"]] if isinstance(item["input"], dict) else [key]:
        by_name = [other for other in known if other.rsplit(".", 1)[-1] == leaf.rsplit(".", 1)[-1]]
        nearest = by_name or difflib.get_close_matches(leaf, known, n=1, cutoff=0.5)
        problems.append(f"unknown setting {leaf}" + (f" (did you mean {nearest[0]}?)" if nearest else ""))
    return problems


def _key(item: ErrorDetails) -> str:
    return ".".join(str(part) for part in item["loc"])


def render_defaults() -> str:
    """Every setting with its default and meaning, as TOML. All lines are comments, because a file wins over presets."""
    lines: list[str] = []
    section = ""
    for key, default, meaning in settings_of():
        head, _, name = key.rpartition(".")
        if head != section:
            lines += ["", f"[{head}]"]
            section = head
        shown = "" if default is None else f" {json.dumps(default)}"
        lines.append(f"# {name} ={shown}  # {meaning}")
    return "\n".join(lines).strip()
