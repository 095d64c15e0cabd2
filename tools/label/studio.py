"""Label Studio's files: the labeling config, and the JSON export of its tasks."""

from pathlib import Path
from xml.etree import ElementTree

from pydantic import BaseModel, TypeAdapter, ValidationError

from kdc.artifact.question import canonical
from kdc.common.errors import InputError
from kdc.tools.filled import LABEL, label_numbers
from kdc.tools.label.spec import Spec

_MOST_BYTES = 256 << 20  # of an export

Row = tuple[str, str, list[int]]  # id, place, people's labels


def labeling_config(spec: Spec) -> bytes:
    view = ElementTree.Element("View")
    if asked := spec.question.instructions:
        ElementTree.SubElement(view, "Header", value=asked if isinstance(asked, str) else canonical(asked))
    ElementTree.SubElement(view, "Text", name="text", value="$text")
    choices = ElementTree.SubElement(view, "Choices", name=LABEL, toName="text", choice="single")
    for label, option in zip(spec.labels, spec.options, strict=True):
        hint = {"hint": option.description} if isinstance(option.description, str) else {}
        ElementTree.SubElement(choices, "Choice", {"value": label} | hint)
    return ElementTree.tostring(view, encoding="utf-8", xml_declaration=False)


class _Value(BaseModel):
    choices: list[str] = []


class _Result(BaseModel):
    from_name: str = ""
    value: _Value = _Value()


class _Annotation(BaseModel):
    was_cancelled: bool = False
    result: list[_Result] = []


class _Data(BaseModel):
    id: str
    sample: str


class _Task(BaseModel):
    """Other keys of Label Studio's export are ignored."""

    data: _Data
    annotations: list[_Annotation] = []


def read_tasks(path: Path, spec: Spec) -> tuple[str, list[Row]]:
    """The sample's mark, and the rows.

    Raises:
        InputError: the file is no export, a label is unknown, or an annotation has two labels.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError("the export is too large", given=path, remedy=f"at most {_MOST_BYTES >> 20} MiB")
        tasks = TypeAdapter(list[_Task]).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError("the export cannot be read", given=f"{path}: {error.strerror}") from None
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        given = f"{path}: {'.'.join(map(str, wrong['loc']))} {wrong['msg']}"
        remedy = "import the file .labelstudio.json, and export as JSON (not JSON-MIN)"
        raise InputError("this is no JSON export of Label Studio", given=given, remedy=remedy) from None
    if len(marks := {task.data.sample for task in tasks}) > 1:
        raise InputError("the tasks are of several audits", given=path, remedy="export each audit alone")
    number_of, rows = label_numbers(spec.labels), []
    for place, task in enumerate(tasks, start=1):
        where, numbers = f"{path}, task {place}", []
        for annotation in task.annotations:
            results = [] if annotation.was_cancelled else annotation.result
            chosen = [choice for each in results if each.from_name == LABEL for choice in each.value.choices]
            if len(chosen) > 1:
                raise InputError("one text has two labels", given=where, remedy="keep one choice in each annotation")
            numbers += [number_of(choice.strip(), where) for choice in chosen]
        rows.append((task.data.id, where, numbers))
    return marks.pop() if marks else "", rows
