"""Resolving settings: precedence, presets, and all mistakes reported at once."""

import json
from pathlib import Path

import pytest

from kdc.common.errors import InputError
from kdc.pipeline.config.resolve import layer_of, parse_sets, read_file, render_defaults, resolve, settings_of
from kdc.pipeline.config.settings import Config


def make(flags: dict | None = None, sets: list[str] | None = None, file: dict | None = None) -> Config:
    return resolve(flags=layer_of(flags or {}), sets=parse_sets(sets or []), file=file or {})


def test_a_flag_wins_over_set_over_file_over_preset_over_default() -> None:
    file = {"student": {"epochs": 7, "lora": {"r": 7}, "temperature": 7.0}, "teacher": {"epochs": 7}}
    config = make({"student.epochs": 9}, ["student.epochs=8", "student.lora.r=8"], file)
    assert config.student.epochs == 9  # flag
    assert config.student.lora.r == 8  # --set
    assert config.student.temperature == 7.0  # file
    assert config.student.model == "distilbert/distilbert-base-uncased"  # preset of the family
    assert config.student.batch_size == 32  # default


def test_defaults_that_are_given_make_the_same_json_as_defaults_that_are_not() -> None:
    config = make()
    again = Config.model_validate_json(config.model_dump_json())
    # Fingerprints are made of such text.
    assert json.dumps(again.model_dump(), default=str) == json.dumps(config.model_dump(), default=str)


def test_no_family_and_no_teacher_means_bert() -> None:
    assert make().run.family == "bert"
    assert make().teacher.model == "google-bert/bert-base-uncased"


def test_a_teacher_that_is_named_gets_no_familys_student() -> None:
    config = make({"teacher.model": "some/teacher"})
    assert config.run.family is None
    assert config.student.model == "layers:first-and-last"


@pytest.mark.parametrize(("recipe", "dropout", "rate"), [("paper", 0.1, 5e-5), ("paper-as-described", 0.05, 5e-4)])
def test_the_paper_recipes_have_the_papers_numbers(recipe: str, dropout: float, rate: float) -> None:
    config = make({"run.recipe": recipe, "run.family": "minilm"})
    student = config.student
    assert (student.lora.r, student.lora.alpha, student.lora.dropout) == (8, 16, dropout)
    assert (student.lora.targets, student.learning_rate) == ("query-value", rate)
    assert (student.temperature, student.alpha) == (2.0, 0.5)
    assert (student.model, student.cut_from) == ("layers:every-second", "pretrained")


@pytest.mark.parametrize("family", ["bert", "minilm"])
def test_the_paper_recipe_trains_teacher_and_student_as_its_script_does(family: str) -> None:
    """Catches a family whose own rates win over the recipe's: what the script trains, by its default arguments."""
    config = make({"run.recipe": "paper", "run.family": family})
    for settings in (config.teacher, config.student):
        assert (settings.learning_rate, settings.new_modules_rate, settings.batch_size) == (5e-5, 5e-5, 16)
        assert (settings.warmup, settings.weight_decay, settings.epochs, settings.min_steps) == (0, 0.01, 3, 0)
        assert (settings.kept_step, settings.patience, settings.dropout) == ("last", None, "own")


@pytest.mark.parametrize(("section", "method", "rate"), [("teacher", "lora", 5e-4), ("student", "full", 5e-5)])
def test_the_paper_recipe_trains_by_another_method_as_the_authors_other_scripts(
    section: str, method: str, rate: float
) -> None:
    """`benchmarks/study.py` trains the teacher with adapters, and all weights of the student."""
    settings = getattr(make({"run.recipe": "paper", f"{section}.method": method}), section)
    assert (settings.learning_rate, settings.new_modules_rate) == (rate, rate)


def test_a_training_that_keeps_its_last_step_waits_for_no_better_one() -> None:
    with pytest.raises(InputError, match="kept_step=last"):
        make(sets=["student.kept_step=last", "student.patience=2"])


def test_a_limit_of_unlabelled_texts_needs_such_texts() -> None:
    # The bug to catch: it does nothing, but the teacher answers all rows again, since its rows' settings changed.
    with pytest.raises(InputError, match="max_unlabeled_rows=9"):
        make({"data.max_unlabeled_rows": 9})


def test_a_familys_own_student_checkpoint_stays_in_all_recipes() -> None:
    for recipe in ("best", "paper", "paper-as-described"):
        assert make({"run.recipe": recipe, "run.family": "roberta"}).student.model == "distilbert/distilroberta-base"


def test_a_student_without_layers_is_trained_in_its_own_way_unless_the_person_says_otherwise() -> None:
    """Would catch a person's setting that is lost, and adapters that stay asked for of one that a search finds."""
    student = make({"student.model": "conv:window=5", "student.epochs": 2.0}, ["student.batch_size=7"]).student
    assert (student.method, student.epochs, student.batch_size) == ("full", 2.0, 7)
    assert (student.learning_rate, student.head_learning_rate, student.min_steps) == (1e-3, 2e-3, 3000)
    layered = make(sets=["student.min_steps=100"]).student
    found = layered.of("static")
    assert (found.model, found.method, found.epochs, found.min_steps) == ("static", "full", 9.0, 200)
    assert layered.of("layers:0") == layered.model_copy(update={"model": "layers:0"})
    assert student.of("static") == student.model_copy(update={"model": "static"})


@pytest.mark.parametrize(
    ("flags", "own", "layered"),
    [
        ({}, "loss", "score"),
        ({"student.kept_step": "last"}, "last", "last"),
        ({"student.kept_step": "loss"}, "loss", "loss"),
        ({"run.recipe": "paper"}, "last", "last"),
        ({"run.recipe": "paper-as-described"}, "loss", "score"),
    ],
)
def test_only_by_default_a_student_without_layers_keeps_its_step_by_another_rule(
    flags: dict, own: str, layered: str
) -> None:
    """Would catch a rule that was asked for, or is the recipe's, and that a search's find does not have."""
    assert make(flags | {"student.model": "static"}).student.kept_step == own
    student = make(flags).student
    assert (student.kept_step, student.of("conv").kept_step) == (layered, own)
    assert make({"student.model": "conv", "student.kept_step": "score"}).student.of("linear").kept_step == "score"


@pytest.mark.parametrize("kind", ["conv", "static"])
def test_a_student_without_layers_ends_early_unless_it_keeps_its_last_step(kind: str) -> None:
    """Would catch a patience that a run with kept_step=last refuses, and one that replaces the person's."""
    named = make({"student.model": kind})
    assert named.student.patience == 6
    assert make({"student.model": kind, "student.patience": 2}).student.patience == 2
    assert make({"student.patience": 2}).student.of(kind).patience == 2
    assert make({"student.model": kind, "student.kept_step": "last"}).student.patience is None
    assert make({"student.kept_step": "last"}).student.of(kind).patience is None
    assert make().student.patience is None


def test_a_search_around_one_student_without_layers_trains_each_other_one_in_its_own_way() -> None:
    """Would catch `linear` at the rates and steps of the `conv` that was named, and the other way round."""
    for named, other in (("conv", "linear"), ("linear", "static")):
        found, own = make({"student.model": named}).student.of(other), make({"student.model": other}).student
        assert found == own


def test_all_mistakes_are_reported_at_once_with_the_nearest_name() -> None:
    with pytest.raises(InputError) as caught:
        make(sets=["student.lora.rank=4", "student.epoch=3", "teacher.batch_size=none", "run.recipe=bset"])
    message = str(caught.value)
    assert "unknown setting student.epoch (did you mean student.epochs?)" in message
    assert "student.lora.rank" in message
    assert "teacher.batch_size" in message
    assert "run.recipe" in message
    assert "4 wrong settings" in message


@pytest.mark.parametrize("value", ["0", "few"])
def test_a_setting_of_two_kinds_has_one_mistake(value: str) -> None:
    with pytest.raises(InputError, match=r"1 wrong setting:\n +student\.vocabulary: .*'auto'; or: ") as caught:
        make(sets=[f"student.vocabulary={value}"])
    assert str(caught.value).count("student.vocabulary") == 1


def test_a_list_with_several_wrong_parts_is_one_mistake() -> None:
    with pytest.raises(InputError, match=r"1 wrong setting:\n +export\.formats: ") as caught:
        make(sets=['export.formats=["a","b"]'])
    assert str(caught.value).count("Input should be") == 1


@pytest.mark.parametrize("name", ["Conv", "conv,", "conv ", "layers", "layer:0", "teacher:int8", "statik:width=8"])
def test_a_kind_of_student_that_is_misspelt_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(InputError, match=r"no such student, did you mean (conv|layers|teacher|static)"):
        make({"student.model": name})


def test_a_checkpoint_of_any_other_name_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Conv").mkdir()
    for name in ("bert-base-uncased", "me/conv", "convbert-base", "Conv", "./layers"):
        assert make({"student.model": name}).student.model == name


def test_a_setting_in_the_wrong_section_is_found_by_its_name() -> None:
    with pytest.raises(InputError, match=r"did you mean student\.temperature"):
        make(sets=["teacher.temperature=2"])


def test_an_unknown_section_names_its_keys() -> None:
    with pytest.raises(InputError, match=r"unknown setting lora\.r"):
        make(file={"lora": {"r": 3}})


@pytest.mark.parametrize("item", ["student.epochs", "=3", ""])
def test_a_set_without_key_or_value_is_refused(item: str) -> None:
    with pytest.raises(InputError, match=r"section\.key=value"):
        parse_sets([item])


def test_every_setting_can_be_set_by_its_printed_key_and_default() -> None:
    for key, default, _ in settings_of():
        if default is not None:
            value = str(default).lower() if isinstance(default, bool) else default
            value = json.dumps(value) if isinstance(value, tuple) else value
            config: object = make(sets=[f"{key}={value}"])
            for part in key.split("."):
                config = getattr(config, part)
            assert config == default


def test_the_printed_defaults_are_a_valid_config_file(tmp_path: Path) -> None:
    path = tmp_path / "kdc.toml"
    path.write_text(render_defaults())
    assert make(file=read_file(path)) == make()
    path.write_text(render_defaults().replace("# temperature = 2.0", "temperature = 3.0"))
    assert make(file=read_file(path)).student.temperature == 3.0


@pytest.mark.parametrize("setting", ["teacher.labels", "teacher.more", "student.lora.targets"])
def test_a_name_that_is_left_out_between_commas_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match="a name between the commas is empty"):
        make(sets=[f"{setting}=query,,dense"])


def test_lora_targets_can_be_a_list_of_names() -> None:
    assert make(sets=["student.lora.targets=query,dense"]).student.lora.targets == ("query", "dense")
    assert make(sets=['student.lora.targets=["query"]']).student.lora.targets == ("query",)


def test_a_config_file_that_is_not_toml_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[student\n")
    with pytest.raises(InputError, match="not valid TOML"):
        read_file(path)


def test_a_missing_config_file_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_file(tmp_path / "none.toml")


def test_a_config_is_frozen() -> None:
    config = make()
    with pytest.raises(ValueError, match="frozen"):
        config.run.seed = 3  # type: ignore[misc]
