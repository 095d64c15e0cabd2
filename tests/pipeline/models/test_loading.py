"""Models: where adapters go, what is trained beside them, whose labels are whose."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_runs
import torch
from tiny_models import ARCHITECTURES, build
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoModelForSequenceClassification,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.tasks import custom_task
from kdc.pipeline.config.training_settings import LoraSettings
from kdc.pipeline.models import loading
from kdc.pipeline.training import adapters
from kdc.pipeline.training.students import load_student
from kdc.pipeline.training.teachers import label_order, load_finetuned

TASK = custom_task("toy", "first", "second", "label", "classification", ("a", "b", "c"))
IDS = torch.tensor([[2, 10, 11, 3], [2, 12, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
# What `from_pretrained` makes anew for each architecture when the checkpoint is an encoder alone.
NEW = {
    "bert": ("classifier",),
    "distilbert": ("classifier", "pre_classifier"),
    "roberta": ("classifier",),
    "deberta-v2": ("classifier", "pooler"),
    "electra": ("classifier",),
    "mpnet": ("classifier",),
}


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_new_modules_are_those_that_the_checkpoint_lacks(architecture: str, tmp_path: Path) -> None:
    tiny_runs.base_model(architecture, tmp_path)
    assert loading.load_model(str(tmp_path), TASK).new_modules == NEW[architecture]


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_a_model_without_dropout_answers_the_same_while_it_trains(
    architecture: str, pooling: Any, tmp_path: Path
) -> None:
    """Catches a kind of dropout that stays on, such as that of attention, which is no module."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.4, "dropout": 0.0, "attention_dropout": 0.4}
    tiny_runs.base_model(architecture, tmp_path, **rates)
    for rate, same in ((None, False), (0.0, True)):
        model = loading.load_model(str(tmp_path), TASK, pooling=pooling, dropout=rate).model.train()
        first, second = (model(input_ids=IDS, attention_mask=MASK).logits for _ in range(2))
        assert torch.equal(first, second) is same


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_adapters_reload_in_full_heads_and_poolers_included(architecture: str, tmp_path: Path) -> None:
    from peft import PeftModel

    tiny_runs.base_model(architecture, tmp_path / "encoder")
    loaded = loading.load_model(str(tmp_path / "encoder"), TASK)
    loaded.model.save_pretrained(tmp_path / "base")
    settings = LoraSettings(r=2, alpha=4, dropout=0, init="gaussian")
    adapted = adapters.with_adapters(loaded.model, loaded.new_modules, settings)
    for weight in adapted.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.eval()
    expected = adapted(input_ids=IDS, attention_mask=MASK).logits
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    before = base.eval()(input_ids=IDS, attention_mask=MASK).logits
    again = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert torch.equal(again(input_ids=IDS, attention_mask=MASK).logits, expected)
    assert (before - expected).abs().max() > 0.1


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_query_value_means_two_layers_of_each_attention(architecture: str, tmp_path: Path) -> None:
    model, _ = build(architecture, tmp_path)
    assert len(adapters.lora_targets(model, "query-value")) == 2 * 2


def test_query_value_of_a_modernbert_is_the_layer_that_makes_both(tmp_path: Path) -> None:
    model, _ = build("modernbert", tmp_path)
    targets = adapters.lora_targets(model, "query-value")
    assert [name.rsplit(".", 1)[-1] for name in targets] == ["Wqkv"] * 4


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_all_linear_leaves_head_and_pooler_alone(architecture: str, tmp_path: Path) -> None:
    model, _ = build(architecture, tmp_path)
    targets = adapters.lora_targets(model, "all-linear")
    assert len(targets) == 6 * 2  # query, key, value, output, and two of the feed-forward block, in two layers
    assert not any("pooler" in name or "classifier" in name for name in targets)


def test_a_target_that_no_layer_has_names_those_there_are(tmp_path: Path) -> None:
    model, _ = build("bert", tmp_path)
    with pytest.raises(InputError, match=r"its linear layers: dense, key, query, value"):
        adapters.lora_targets(model, ("q_proj",))


def test_a_checkpoint_without_the_encoders_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_runs.base_model("bert", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layer.1." not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KdcError, match="lacks weights of the encoder"):
        loading.load_model(str(tmp_path), TASK)


def test_a_model_that_is_not_there_is_wrong_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="cannot load the model"):
        loading.load_model(str(tmp_path / "none"), TASK)


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | settings), encoding="utf-8")


@pytest.mark.parametrize(
    "hostile",
    [
        {"_attn_implementation": "somebody/kernels"},
        {"_attn_implementation_internal": {"": "sdpa", "text_config": "somebody/kernels"}},
        {"text_config": [{"attn_implementation": "somebody/kernels"}]},
        {"attribute_map": {"harmless": "_attn_implementation_internal"}, "harmless": "somebody/kernels"},
        {"model_type": "vit_mae"},
        {"model_type": None},
        {"model_type": ["bert"]},
    ],
)
def test_a_config_that_could_run_code_is_refused(hostile: dict[str, Any], tmp_path: Path) -> None:
    build("bert", tmp_path)
    change(tmp_path / "config.json", **hostile)
    for opens in (loading.load_config, loading.load_tokenizer, lambda place: loading.load_model(place, TASK)):
        with pytest.raises(InputError, match=r"would run hub code|has no classifier|attribute_map|unhashable"):
            opens(str(tmp_path))
    with pytest.raises((ValueError, TypeError)):
        loading.load_plain(tmp_path)


@pytest.mark.parametrize("harmless", [{"trust_remote_code": True}, {"label2id": {"a/b": 0, "_attn_implementation": 1}}])
def test_a_config_that_only_looks_like_one_is_opened(harmless: dict[str, Any], tmp_path: Path) -> None:
    build("bert", tmp_path)
    change(tmp_path / "config.json", **harmless)
    assert loading.load_config(str(tmp_path)).model_type == "bert"


@pytest.mark.parametrize(
    "broken", ["[]", "null", '"bert"', "{", '{"model_type": "bert", "a": ' + "[" * 9000 + "]" * 9000 + "}"]
)
def test_a_broken_config_is_wrong_input(broken: str, tmp_path: Path) -> None:
    build("bert", tmp_path)
    (tmp_path / "config.json").write_text(broken, encoding="utf-8")
    with pytest.raises(InputError, match="cannot load the model's config"):
        loading.load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    "setting",
    [{"hidden_size": "x"}, {"num_attention_heads": 0}, {"hidden_act": "x"}, {"dtype": [1]}],
)
def test_a_setting_that_no_model_can_have_is_wrong_input(setting: dict[str, Any], tmp_path: Path) -> None:
    """Would catch an exception of transformers that ends the run in a traceback."""
    build("bert", tmp_path)
    change(tmp_path / "config.json", **setting)
    with pytest.raises(InputError, match="cannot load the model"):
        loading.load_model(str(tmp_path), TASK)


@pytest.mark.parametrize("kept", [0, 4, 2000])
def test_weights_that_were_not_copied_to_their_end_are_wrong_input(kept: int, tmp_path: Path) -> None:
    build("bert", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(InputError, match="cannot load the model"):
        loading.load_model(str(tmp_path), TASK)


def test_an_error_of_kdc_itself_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a MiniLM whose files were changed that is told as a folder without a model."""

    def find() -> Path:
        raise KdcError("a file is not the published one", given="model.safetensors", remedy="install it again")

    monkeypatch.setattr(loading, "find_minilm", find)
    for opens in (loading.load_config, loading.load_tokenizer, lambda place: loading.load_model(place, TASK)):
        with pytest.raises(KdcError, match="not the published one") as caught:
            opens("minilm")
        assert not isinstance(caught.value, InputError)


def test_adapters_are_not_taken_for_a_model(tmp_path: Path) -> None:
    """Would catch a teacher whose weights are those of another folder, which its fingerprint does not have."""
    for name in ("base", "adapted"):
        build("bert", tmp_path / name)
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapted" / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for opens in (loading.load_config, loading.load_tokenizer, lambda place: loading.load_model(place, TASK)):
        with pytest.raises(InputError, match="merge them into that model first"):
            opens(str(tmp_path / "adapted"))


def theirs(folder: Path, ran: Path, config: dict[str, Any] | None = None) -> Path:
    """A model of a stranger, with a tokenizer, and with code beside it that would make a file."""
    build("bert", folder)
    (folder / "tokenizer_config.json").unlink()  # without it AutoTokenizer opens the config
    (folder / "evil.py").write_text(
        "from transformers import PretrainedConfig\n"
        f"open({str(ran)!r}, 'w').close()\n"
        "class Evil(PretrainedConfig): pass\n"
    )
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    evil = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(evil if config is None else config))
    return folder


def test_a_strangers_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these runs it with transformers 4.57, where nothing is checked or somebody at a terminal says yes."""
    monkeypatch.setattr("builtins.input", lambda _: "y")
    ran, mapped = tmp_path / "ran", {"AutoModelForSequenceClassification": "evil.Evil", "AutoModel": "evil.Evil"}
    code = theirs(tmp_path / "code", ran)
    trusting = {"model_type": "lightglue", "trust_remote_code": True}
    second = {"model_type": "evil", "_name_or_path": str(code)}
    direct = theirs(tmp_path / "direct", ran, trusting | {"keypoint_detector_config": second})
    third = {"model_type": "xcodec", "semantic_model_config": {"_name_or_path": str(direct)}}
    places = [code, direct, theirs(tmp_path / "third", ran, third)]
    places += [
        theirs(tmp_path / kind, ran, {"model_type": kind, "auto_map": mapped}) for kind in ("vit_mae", "csm", "llama4")
    ]
    for place in places:
        for opens in (loading.load_tokenizer, loading.load_config, lambda place: loading.load_model(place, TASK)):
            with pytest.raises(InputError):
                opens(str(place))
        for pooling in ("mean", "auto"):
            with pytest.raises(InputError):
                loading.load_model(str(place), TASK, pooling=pooling)
    # A model that is as it should be, but for its tokenizer, and for a class of its own.
    build("bert", tmp_path / "other")
    (tmp_path / "other" / "evil.py").write_text((code / "evil.py").read_text())
    change(tmp_path / "other" / "config.json", auto_map=mapped)
    for pooling in ("first", "mean"):
        loading.load_model(str(tmp_path / "other"), TASK, pooling=pooling)  # type: ignore[arg-type]
    own = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    change(tmp_path / "other" / "tokenizer_config.json", **own)
    with contextlib.suppress(InputError):
        loading.load_tokenizer(str(tmp_path / "other"))
    assert not ran.exists()


@pytest.mark.parametrize("name", ["LightGlueConfig", "RagTokenizer", "BertLMHeadModel", "AutoProcessor", "AutoModel"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_what_is_no_tokenizer_is_not_opened_as_one(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")
    code, ran = theirs(tmp_path / "code", tmp_path / "ran"), tmp_path / "ran"
    second = {"model_type": "evil", "_name_or_path": str(code)}
    glue = {"model_type": "lightglue", "trust_remote_code": True, "keypoint_detector_config": second}
    place = tmp_path / "model"
    build("bert", place)
    for more in ("evil.py", "custom_generate/generate.py"):
        (place / more).parent.mkdir(exist_ok=True)
        (place / more).write_text((code / more).read_text())
    (place / "processor_config.json").write_text('{"auto_map": {"AutoProcessor": "evil.Evil"}}')
    parts = {"question_encoder": glue, "generator": glue, "trust_remote_code": True, "keypoint_detector_config": second}
    change(place / "config.json", **parts)
    if file == "config.json":
        (place / "tokenizer_config.json").unlink()
    change(place / file, tokenizer_class=name)
    with pytest.raises(InputError, match=f"'{name}', which is no tokenizer"):
        loading.load_tokenizer(str(place))
    assert not ran.exists()


def test_a_vocabulary_that_lies_elsewhere_is_not_read(tmp_path: Path) -> None:
    build("bert", tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    change(settings, vocab_file="/home/somebody/vocab.txt", special_tokens_map_file=str(tmp_path))  # as many have
    loading.load_tokenizer(str(tmp_path / "model"))
    (tmp_path / "secret").write_text("of another")
    change(settings, vocab_file=str(tmp_path / "secret"))
    with pytest.raises(InputError, match="a file elsewhere"):
        loading.load_tokenizer(str(tmp_path / "model"))


def test_an_architecture_that_is_opened_has_no_code_to_generate() -> None:
    """transformers 4.57 runs `custom_generate/generate.py` beside the weights of what can generate, unasked."""
    for name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        config = CONFIG_MAPPING[name]
        for mapping in (MODEL_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING):
            found = mapping[config]
            for each in found if isinstance(found, tuple) else (found,):
                assert each is not None
                assert not each.can_generate(), name


@pytest.mark.parametrize("more", [{}, {"extra_special_tokens": {"chat_template": "[X]"}}])
def test_a_template_for_chats_is_written_nowhere(more: dict[str, Any], tmp_path: Path) -> None:
    """Its name is a stranger's: with `../` in it transformers before 5.10 writes outside of the folder."""
    build("bert", tmp_path / "theirs")
    templates = [{"name": "default", "template": "x"}, {"name": "../../outside", "template": "x"}]
    change(tmp_path / "theirs" / "tokenizer_config.json", chat_template=templates, **more)
    loading.load_tokenizer(str(tmp_path / "theirs")).save_pretrained(tmp_path / "ours" / "tokenizer")
    assert not list(tmp_path.rglob("*.jinja"))


def test_a_finetuned_teachers_outputs_are_put_into_the_tasks_order(tmp_path: Path) -> None:
    model, _ = build("distilbert", tmp_path)
    model.config.id2label = {0: "C", 1: "a", 2: "b"}
    model.config.label2id = {"C": 0, "a": 1, "b": 2}
    model.save_pretrained(tmp_path)
    expected = model(input_ids=IDS, attention_mask=MASK).logits[:, [1, 2, 0]]
    teacher = load_finetuned(str(tmp_path), TASK, None).eval()
    assert torch.equal(teacher(input_ids=IDS, attention_mask=MASK).logits, expected)
    assert teacher.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_finetuned_regression_teacher_answers_in_standard_deviations(tmp_path: Path) -> None:
    model, _ = build("bert", tmp_path, outputs=1)
    model.save_pretrained(tmp_path)
    expected = (model(input_ids=IDS, attention_mask=MASK).logits - 40.0) / 8.0
    task = custom_task("prices", "text", None, "label", "regression").model_copy(update={"center": 40.0, "spread": 8.0})
    teacher = load_finetuned(str(tmp_path), task, None).eval()
    torch.testing.assert_close(teacher(input_ids=IDS, attention_mask=MASK).logits, expected)


def test_a_finetuned_teacher_with_other_labels_is_an_error(tmp_path: Path) -> None:
    model, _ = build("bert", tmp_path)
    model.config.id2label = {0: "x", 1: "a", 2: "b"}
    with pytest.raises(InputError, match="labels are not the task's"):
        label_order(model.config, TASK, None)


def test_a_finetuned_teacher_that_says_label_0_must_be_told_its_names(tmp_path: Path) -> None:
    model, _ = build("bert", tmp_path)
    with pytest.raises(InputError, match=r"--set teacher\.labels=a,b,c"):
        label_order(model.config, TASK, None)
    assert label_order(model.config, TASK, ("b", "c", "a")) == [2, 0, 1]


def test_names_that_contradict_the_teachers_own_are_refused(tmp_path: Path) -> None:
    config = SimpleNamespace(num_labels=3, id2label={0: "C", 1: "A", 2: "B"})
    assert label_order(config, TASK, None) == [1, 2, 0]
    assert label_order(config, TASK, ("c", "a", "b")) == [1, 2, 0]
    with pytest.raises(InputError, match=r"leave out teacher\.labels"):
        label_order(config, TASK, ("a", "b", "c"))


def test_a_finetuned_teacher_with_another_number_of_outputs_is_an_error(tmp_path: Path) -> None:
    model, _ = build("bert", tmp_path, outputs=2)
    with pytest.raises(InputError, match="another number of outputs"):
        label_order(model.config, TASK, None)


def test_a_teacher_without_a_trained_head_is_not_finetuned(tmp_path: Path) -> None:
    tiny_runs.base_model("bert", tmp_path, num_labels=3)
    with pytest.raises(InputError, match="not fine-tuned"):
        load_finetuned(str(tmp_path), TASK, ("a", "b", "c"))


def test_weights_in_several_files_are_one_model_and_one_fingerprint(tmp_path: Path) -> None:
    """Would catch a model that is known by one of its files, so that a change in another would redo nothing."""
    model, _ = build("bert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    loaded = loading.load_model(str(tmp_path), TASK)
    assert loaded.new_modules == ()
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in loaded.model.state_dict().items())
    before = loading.fingerprint(str(tmp_path))
    shards[-1].write_bytes(shards[-1].read_bytes()[:-1] + b"!")
    assert loading.fingerprint(str(tmp_path)) != before


def test_roberta_takes_two_tokens_less_than_it_has_positions(tmp_path: Path) -> None:
    model, _ = build("roberta", tmp_path)
    tokenizer = loading.load_tokenizer(str(tmp_path))
    tokenizer.model_max_length = 10**6
    assert loading.longest_input(model.config, tokenizer) == 62


def model_logits(folder: Path) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return model(input_ids=IDS, attention_mask=MASK).logits


@pytest.mark.parametrize("init", ["default", "gaussian", "pissa_niter_4", "olora", "orthogonal"])
def test_adapters_of_every_initialisation_fit_the_saved_student(init: str, tmp_path: Path) -> None:
    model, _ = build("bert", tmp_path / "base")
    settings = LoraSettings(r=2, alpha=4, dropout=0, targets="query-value", init=init)
    adapted = adapters.with_adapters(model, ("pooler",), settings)
    adapters.save_rewritten(adapted, tmp_path / "base", tmp_path / "below")
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    expected = adapted.eval()(input_ids=IDS, attention_mask=MASK).logits
    adapters.save_adapters(adapted, tmp_path / "adapter")
    before = model_logits(tmp_path / "base")
    again = load_student(tmp_path)
    assert torch.allclose(again(input_ids=IDS, attention_mask=MASK).logits, expected, atol=1e-4)
    assert (before - expected).abs().max() > 0.01


def test_token_types_are_not_made_for_a_model_that_takes_none(tmp_path: Path) -> None:
    from tiny_models import build_tokenizer

    build("distilbert", tmp_path)
    build_tokenizer(typed=True).save_pretrained(tmp_path)
    assert "token_type_ids" not in loading.load_tokenizer(str(tmp_path))("w1", "w2")
