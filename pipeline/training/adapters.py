"""LoRA adapters, in PEFT's file formats."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from kdc.common.errors import InputError, KdcError
from kdc.pipeline.config.training_settings import LoraSettings
from kdc.pipeline.models.loading import load_plain
from kdc.pipeline.models.units import encoder_layers

_QUERY_VALUE = ("query", "value", "q_lin", "v_lin", "query_proj", "value_proj", "q_proj", "v_proj", "q", "v", "Wqkv")
_REWRITING_INITS = ("pissa", "olora")


def lora_targets(model: PreTrainedModel, targets: str | tuple[str, ...]) -> list[str]:
    """Full names of the encoder's linear layers in `targets`: "all-linear", "query-value", or last parts of names."""
    prefix, stack = encoder_layers(model)
    linear = [f"{prefix}.{name}" for name, module in stack.named_modules() if isinstance(module, nn.Linear)]
    if targets == "all-linear":
        return linear
    last = {name.rsplit(".", 1)[-1] for name in linear}
    names = set(_QUERY_VALUE) & last if targets == "query-value" else set(targets)
    unknown = names - last
    if unknown or not names:
        raise InputError(
            "the encoder lacks the layers that adapters should change",
            given=", ".join(sorted(unknown)) or targets,
            remedy=f"its linear layers: {', '.join(sorted(last))}; set --set student.lora.targets=NAME,NAME",
        )
    return [name for name in linear if name.rsplit(".", 1)[-1] in names]


def with_adapters(model: PreTrainedModel, new_modules: tuple[str, ...], settings: LoraSettings) -> Any:
    """Put LoRA adapters on a model, in place. Adapters, head and new modules train.

    Raises:
        InputError: PEFT refuses the settings, or layers are missing.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    targets = lora_targets(model, settings.targets)
    outside = [name for name, module in model.named_children() if module is not model.base_model]
    heads = [name for name in outside if any(True for _ in model.get_submodule(name).parameters())]
    heads += [name for name in new_modules if name not in heads]
    try:
        lora = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=settings.r,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            use_dora=settings.dora,
            init_lora_weights=True if settings.init == "default" else settings.init,  # type: ignore[arg-type]
            target_modules=targets,
            modules_to_save=list(heads),  # PEFT appends to it
        )
        adapted = get_peft_model(model, lora)
    except ValueError as error:
        raise InputError(f"PEFT refuses the adapters: {error}", given=settings, remedy="see `kdc config`") from error
    adapted_layers = {name.split(".lora_A.")[0] for name, _ in adapted.named_parameters() if ".lora_A." in name}
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    idle = [head for head in heads if not any(f"{head}.modules_to_save." in name for name in trained)]
    if len(adapted_layers) != len(targets) or idle:
        raise KdcError(
            "adapters did not take effect",
            given=f"{len(adapted_layers)} of {len(targets)} layers, idle heads: {idle}",
            remedy="name the layers with --set student.lora.targets=NAME,NAME",
        )
    return adapted


def save_adapters(adapted: Any, folder: Path) -> None:
    """Save the adapters. They fit only the weights they were trained on."""
    adapted.peft_config["default"].init_lora_weights = True  # else loading would change the base weights
    adapted.save_pretrained(folder)


def save_rewritten(adapted: Any, base: Path, folder: Path) -> None:
    """Save the base weights if PiSSA or OLoRA changed them; `base` holds the original."""
    if not str(adapted.peft_config["default"].init_lora_weights).startswith(_REWRITING_INITS):
        return
    below = {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): weight
        for name, weight in adapted.get_base_model().state_dict().items()
        if ".lora_" not in name and ".modules_to_save." not in name
    }
    plain = load_plain(base)
    plain.load_state_dict(below)
    plain.save_pretrained(folder)
