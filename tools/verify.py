"""`kdc verify`: judge an artifact again, on the machine at hand. Another one means another latency, and can mean other
int8 arithmetic.

Reads the artifact, and a labelled file where one is given. Hashes, size and latency need no more than the serving
install; the metric needs the compress extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdc.artifact.contract.judgement import Judgement
from kdc.artifact.contract.parse import replace
from kdc.artifact.contract.terms import Contract, Quality
from kdc.artifact.folder import load_manifest
from kdc.artifact.manifest import CPU_PROVIDER, Device, Manifest
from kdc.common.errors import InputError
from kdc.pipeline.quality.latency import rows_of, rows_to_time
from kdc.pipeline.quality.judging import judge, load

_LENGTHS = (8, 16, 32, 64)  # of an artifact without a contract, whose rows nobody knows


def verify_artifact(
    artifact: Path,
    *,
    given: Mapping[str, Any],
    data: Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    teacher: str | None = None,
    device: Device | None = None,
    expect_sha256: str | None = None,
) -> tuple[Judgement, Judgement | None]:
    """Check hashes, then judge by the artifact's own contract.

    Args:
        artifact: its folder.
        given: what is put in place of the contract's, or makes one: see `kdc.artifact.contract.parse.replace`.
        data: labelled rows; those that the artifact was evaluated on need no teacher.
        columns: text, text_pair, label, separator of that file, where they are named otherwise.
        teacher: path of the teacher, for other rows.
        device: "cpu", "cuda" or "auto"; None: where it was judged before, else the CPU.
        expect_sha256: refuse any other manifest.

    Returns:
        The judgement of now, and the one that the artifact carries.

    Raises:
        InputError: no contract and no limit, a file that does not fit, or rows that need a teacher.
        KdcError: the artifact is damaged.
    """
    artifact = artifact.resolve()  # one artifact throughout, though a link may be pointed at another meanwhile
    manifest = load_manifest(artifact, expect_sha256=expect_sha256)
    contract = _contract(manifest, given, artifact)
    before = manifest.contract
    if device is None:
        device = "cpu" if before is None or before.provider == CPU_PROVIDER else "cuda"
    engine = load(artifact, contract, device)
    if data is None:
        quality = _quality_of_old(contract, before, engine.variant)
        rows = rows_of(before.lengths if before is not None else _LENGTHS, engine)
        return judge(
            engine, contract, rows_to_time(engine, rows, contract.at), quality, compared=quality is None
        ), before
    from kdc.tools.labelled import compare_again

    texts, quality = compare_again(artifact, engine, contract, data, columns or {}, teacher)
    return judge(engine, contract, rows_to_time(engine, texts, contract.at), quality), before


def _quality_of_old(contract: Contract, before: Judgement | None, variant: str) -> Quality | None:
    """What was found of the same variant for the same limit when the artifact was made; without rows nobody can find
    it anew."""
    limit = contract.limits.max_drop
    if limit is None:
        return None
    if before is None or before.quality is None:
        why = "the artifact was made without such a limit"
    elif before.contract.limits.max_drop != limit or before.contract.confidence != contract.confidence:
        was = before.contract
        why = f"it was judged by {was.limits.max_drop:g} with {100 * was.confidence:g} % confidence"
    elif before.variant != variant:
        why = f"{before.variant} was judged, and {variant} is loaded here"
    else:
        return before.quality
    raise InputError(
        "--max-drop cannot be judged without rows",
        given=f"--max-drop {limit:g}; {why}",
        remedy="add --data FILE, the labelled evaluation rows",
    )


def _contract(manifest: Manifest, given: Mapping[str, Any], artifact: Path) -> Contract:
    """The artifact's, with what was given in its place."""
    contract = replace(manifest.contract.contract if manifest.contract is not None else Contract(), given)
    if not contract.limits.any:
        raise InputError(
            "the artifact has no contract",
            given=artifact,
            remedy="say what must hold: --max-latency-ms 5, --max-size-mb 25, --max-drop 1, --min-rows-per-s 500",
        )
    return contract
