"""What cannot be a student is left out of searches, and refused before anything is trained."""

from pathlib import Path

import pytest
import tiny_runs

from kdc.common.errors import InputError
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.config.training_settings import StudentSettings, TeacherSettings
from kdc.pipeline.models import loading
from kdc.pipeline.stages.candidates import curve_of, students_of
from kdc.pipeline.training.student_checks import check_models, has_graph

TASK = custom_task("t", "text", None, "label", "classification", ("no", "yes"))


def test_a_search_has_no_student_that_cannot_be_exported(tmp_path: Path) -> None:
    """Would end the whole search: each candidate is exported before anything is trained."""
    limits = {"contract.max_latency_ms": 50, "contract.search": "quick"}
    for name, expected in (("longformer", False), ("bert", True)):
        teacher = tiny_runs.base_model(name, tmp_path / name)
        for student in ("layers:0", "conv"):
            config = tiny_runs.config_for(tmp_path, teacher, flags=limits | {"student.model": student})
            for students in (students_of(config), curve_of(config)):
                assert any(each == "teacher" or each.startswith("layers:") for each in students) == expected
                assert {"conv", "static", "linear"} <= set(students)


def test_adapters_need_linear_modules(tmp_path: Path) -> None:
    """GPT-2 has none, and can be exported."""
    teacher = TeacherSettings(model=str(tiny_runs.base_model("gpt2", tmp_path / "gpt2")))
    assert has_graph(loading.load_config(teacher.model))
    student = StudentSettings(model="layers:0")
    with pytest.raises(InputError, match="adapters could change") as refused:
        check_models(student, teacher, TASK, is_searched=False)
    assert "student.method=full" in str(refused.value.remedy)
    check_models(student.model_copy(update={"method": "full"}), teacher, TASK, is_searched=False)


def test_a_hub_that_cannot_be_reached_does_not_stop_a_run_that_needs_it_no_more(tmp_path: Path) -> None:
    """Would stop a finished run on a machine that has not the student's checkpoint, since the check runs each time."""
    teacher = tiny_runs.base_model("bert", tmp_path / "teacher")
    config = tiny_runs.config_for(tmp_path, teacher, flags={"student.model": "nobody/has-such-a-model"})
    check_models(config.student, config.teacher, TASK, is_searched=False)
