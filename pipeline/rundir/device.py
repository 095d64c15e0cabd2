"""Where a run trains, and in which precision."""

from typing import Any, Literal

from kdc.common.errors import InputError


def choose_device(device: str, precision: str) -> tuple[Literal["cpu", "cuda"], bool]:
    """Where to train, and whether in bf16.

    Args:
        device: "auto", "cpu" or "cuda".
        precision: "auto" (bf16 where the device computes it fast), "fp32" or "bf16".

    Raises:
        InputError: CUDA was asked for and is not there, or bf16 was and the GPU has none.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise InputError("no CUDA device is available", given="--device cuda", remedy="`kdc doctor` says why")
    chosen: Literal["cpu", "cuda"] = "cuda" if has_cuda and device != "cpu" else "cpu"
    if precision == "auto":
        return chosen, _has_fast_bf16(chosen)
    bf16 = precision == "bf16"
    if bf16 and chosen == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError("this GPU has no bf16", given="run.precision=bf16", remedy="--set run.precision=fp32")
    return chosen, bf16


def gpu_name(device: str) -> str | None:
    """The name of the GPU that a run trains on; None on a CPU."""
    if device != "cuda":
        return None
    import torch

    return str(torch.cuda.get_device_name())


def _has_fast_bf16(device: str) -> bool:
    """CUDA with bf16 units, or a CPU with AMX or AVX-512's bf16 products."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in torch 2.6
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
