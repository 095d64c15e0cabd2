"""`kdc bench --profile`: where the time of a forward pass goes, by operator."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER
from kdc.common.errors import InputError
from kdc.common.tables import aligned
from kdc.pipeline.quality.products import node_events, operations, seconds_alone
from kdc.serving.engine.long_texts import Tokens
from kdc.serving.engine.tokenizing import pad
from kdc.tools.bench.result import BenchResult, OperatorTime, PassProfile, SubjectResult

_CALLS, _WARM_UPS = 30, 3
_LEAST_SHARE = 0.005  # smaller ones are one line
_TITLES = ("operator", "nodes", "ms", "%")


def profiled(result: BenchResult) -> BenchResult:
    """Add profiles of each artifact at its cases.

    Raises:
        InputError: a subject is in torch or on a GPU, or its variant has no graph of its own.
    """
    cases = [(subject, case) for subject in result.subjects for case in subject.cases]
    profiles = tuple(_profile(subject, case.batch, case.tokens) for subject, case in cases)
    return result.model_copy(update={"profiles": profiles})


def _profile(subject: SubjectResult, rows: int, tokens: int) -> PassProfile:
    if subject.on != CPU_PROVIDER or subject.variant not in ("int8", "fp32"):
        given = f"{subject.name}: {subject.variant} on {subject.on}"
        raise InputError("only int8 and fp32 on a CPU can be profiled", given=given, remedy="leave --profile out")
    folder = Path(subject.path)
    manifest = load_manifest(folder, verify=False)
    file = folder / manifest.variants[subject.variant].file  # type: ignore[index]
    feeds = pad([Tokens([1] * tokens, [0] * tokens)] * rows, manifest.tokenizer)
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
