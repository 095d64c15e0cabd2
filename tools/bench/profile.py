"""Where the time of a forward pass goes: the share of the CPU's peak, and by operator (`kdc bench --profile`).

The share is the time that the pass's matrix products take at a large product's speed, divided by the pass's time.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER
from kdc.common.errors import InputError
from kdc.common.tables import aligned
from kdc.pipeline.quality.products import node_events, operations, seconds_alone
from kdc.serving.engine.long_texts import Tokens
from kdc.serving.engine.tokenizing import pad
from kdc.tools.bench.result import BenchResult, Loaded, OperatorTime, PassProfile, SubjectResult

_CALLS, _WARM_UPS = 30, 3
_LEAST_SHARE = 0.005  # smaller operators share a line
_TITLES = ("operator", "nodes", "ms", "%")


def peak_share(folder: Path, loaded: Loaded, rows: int, tokens: int, seconds: float) -> float | None:
    """The share that a pass reaches, 0 to 1. Each call measures the peak, which a busy machine lowers too.

    Returns:
        None for rows in windows, on a GPU, in torch, for other variants than int8 and fp32, and without onnx.
    """
    if not _is_one_graph(loaded) or find_spec("onnx") is None:
        return None
    if tokens > load_manifest(folder, verify=False).tokenizer.max_length:
        return None
    return seconds_alone(_count(folder, loaded.variant, rows, tokens), loaded.threads) / seconds


def _is_one_graph(loaded: Loaded) -> bool:
    return loaded.on == CPU_PROVIDER and loaded.variant in ("int8", "fp32")


@cache
def _count(folder: Path, variant: str, rows: int, tokens: int) -> dict[str, int]:
    return operations(*_pass(folder, variant, rows, tokens))


def _pass(folder: Path, variant: str, rows: int, tokens: int) -> tuple[Path, dict[str, Any]]:
    manifest = load_manifest(folder, verify=False)
    file = folder / manifest.variants[variant].file  # type: ignore[index]
    return file, pad([Tokens([1] * tokens, [0] * tokens)] * rows, manifest.tokenizer)


def profiled(result: BenchResult) -> BenchResult:
    """Raises InputError if a subject is in torch or on a GPU, or its variant has no graph of its own."""
    cases = [(subject, case) for subject in result.subjects for case in subject.cases]
    profiles = tuple(_profile(subject, case.batch, case.tokens) for subject, case in cases)
    return result.model_copy(update={"profiles": profiles})


def _profile(subject: SubjectResult, rows: int, tokens: int) -> PassProfile:
    if not _is_one_graph(subject):
        given = f"{subject.name}: {subject.variant} on {subject.on}"
        raise InputError("only int8 and fp32 on a CPU can be profiled", given=given, remedy="leave --profile out")
    file, feeds = _pass(Path(subject.path), subject.variant, rows, tokens)
    times: Counter[str] = Counter()
    nodes: Counter[str] = Counter()
    events = node_events(file, feeds, threads=subject.threads, calls=_WARM_UPS + _CALLS)
    for event in events[len(events) * _WARM_UPS // (_WARM_UPS + _CALLS) :]:
        times[event["args"]["op_name"]] += event["dur"]
        nodes[event["args"]["op_name"]] += 1
    seconds = sum(times.values()) / _CALLS / 1e6
    done = operations(file, feeds)
    return PassProfile(
        subject=subject.name,
        rows=rows,
        tokens=tokens,
        threads=subject.threads,
        operators=tuple(
            OperatorTime(operator=name, nodes=nodes[name] // _CALLS, ms=time / _CALLS / 1000)
            for name, time in times.most_common()
        ),
        gmacs_per_second=sum(done.values()) / 2e9 / seconds,
        share_of_products=seconds_alone(done, subject.threads) / seconds,
    )


def render_profiles(profiles: Sequence[PassProfile]) -> str:
    return "\n\n".join(_text(each) for each in profiles)


def _text(profile: PassProfile) -> str:
    rows = [
        (each.operator, str(each.nodes), f"{each.ms:.3f}", f"{100 * each.ms / profile.ms:.1f}")
        for each in profile.operators
        if each.ms >= _LEAST_SHARE * profile.ms
    ]
    small = profile.operators[len(rows) :]
    if small:
        ms = sum(each.ms for each in small)
        rows.append(("others", str(sum(each.nodes for each in small)), f"{ms:.3f}", f"{100 * ms / profile.ms:.1f}"))
    title = f"{profile.subject}, {profile.rows} x {profile.tokens} tokens, {profile.threads} threads: "
    total = (
        f"{profile.ms:.2f} ms, {profile.gmacs_per_second:.0f} GMAC/s, "
        f"{profile.share_of_products:.0%} of what matrix products alone reach now"
    )
    return title + total + "\n" + aligned([_TITLES, *rows], left=(0,))
