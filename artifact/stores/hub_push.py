"""Artifacts into model repositories of the Hugging Face hub. A push is one commit: the hub has all of it, or nothing.

`huggingface_hub` does the work; large files that were uploaded before a push was cut off are not sent again.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdc.artifact.manifest import MANIFEST_NAME, FileInfo, Manifest
from kdc.artifact.stores.addresses import HUB, Repository
from kdc.artifact.stores.hub import TIMEOUT_S, HubSource, asking, hub_api
from kdc.artifact.stores.progress import Meter
from kdc.artifact.stores.sources import read_manifest
from kdc.common.errors import KdcError


def push_to_hub(
    place: Repository, artifact: Path, manifest: Manifest, content: bytes, *, public: bool, meter: Meter
) -> tuple[int | None, str]:
    """Commit what differs, files of the artifact before removed. A repository that is not there yet is made.

    Args:
        place: repository, and the branch in the place of the default one.
        artifact: the folder.
        manifest: of it.
        content: the manifest's bytes.
        public: make a new repository public.
        meter: says whether somebody watches; the library draws bars of its own.

    Returns:
        The bytes of the files that differ (None: all was there), and the address of the commit.

    Raises:
        InputError: this token may not see the repository.
        KdcError: the hub refused.
    """
    told = f"{HUB}{place.name}" + (f"@{place.revision}" if place.revision else "")
    with asking(told):
        api = hub_api()
        before = _repository(api, place, public)
        there = {each.rfilename: each for each in before.siblings or ()}
        files = {name: artifact / name for name in manifest.files if not _is_same(there.get(name), artifact / name)}
        same_manifest = _is_same(there.get(MANIFEST_NAME), artifact / MANIFEST_NAME)
        if not files and same_manifest:
            return None, f"{HUB}{place.name}@{before.sha}"
        operations = _additions(files, manifest.files, content) + _removals(place, before, manifest, there)
        with _bars(meter.is_shown), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a model card without metadata is one
            commit = api.create_commit(
                place.name,
                operations,
                revision=place.revision,
                parent_commit=before.sha,
                commit_message=f"{manifest.task.name}: artifact {manifest.sha256[:12]}",
            )
        _check_arrived(api, place, commit.oid, artifact, manifest)
    return sum(manifest.files[name].size for name in files) + len(content), f"{HUB}{place.name}@{commit.oid}"


def _repository(api: Any, place: Repository, public: bool) -> Any:
    """The branch as it is, with its files; repository and branch are made where they are not there."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def ask(revision: str | None) -> Any:
        return api.repo_info(place.name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)

    try:
        return ask(place.revision)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(place.name, private=not public)
    except RevisionNotFoundError:
        pass
    if place.revision is not None:
        api.create_branch(place.name, branch=place.revision, exist_ok=True)
    return ask(place.revision)


def _is_same(there: Any, path: Path) -> bool:
    """Whether the hub's file has the same bytes: by SHA-256 where it is large, by git's hash elsewhere."""
    if there is None or there.size != path.stat().st_size:
        return False
    if there.lfs is not None:
        with path.open("rb") as file:
            return bool(there.lfs.sha256 == hashlib.file_digest(file, "sha256").hexdigest())
    content = path.read_bytes()
    return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest())


def _additions(files: dict[str, Path], infos: dict[str, FileInfo], content: bytes) -> list[Any]:
    from huggingface_hub import CommitOperationAdd

    additions = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    for each in additions:
        if each.upload_info.sha256.hex() != infos[each.path_in_repo].sha256:
            raise KdcError(
                "a file of the artifact changed while it was read", given=files[each.path_in_repo], remedy="push again"
            )
    return [*additions, CommitOperationAdd(MANIFEST_NAME, content)]


def _removals(place: Repository, before: Any, manifest: Manifest, there: dict[str, Any]) -> list[Any]:
    """Of files that the artifact before had, and this one has not. Whatever else is in the repository stays."""
    from huggingface_hub import CommitOperationDelete

    if MANIFEST_NAME not in there:
        return []
    try:
        old, _ = read_manifest(HubSource(Repository(place.name, before.sha)))
    except KdcError:  # damaged: what it named is not known
        return []
    return [CommitOperationDelete(name) for name in sorted(old.files.keys() - manifest.files.keys()) if name in there]


def _check_arrived(api: Any, place: Repository, commit: str, artifact: Path, manifest: Manifest) -> None:
    """A .gitignore in the repository, for one, makes the hub leave files out without a word."""
    found = api.repo_info(place.name, revision=commit, files_metadata=True, timeout=TIMEOUT_S)
    there = {each.rfilename: each for each in found.siblings or ()}
    lost = [name for name in [*manifest.files, MANIFEST_NAME] if not _is_same(there.get(name), artifact / name)]
    if lost:
        raise KdcError(
            "the hub took the commit without some files",
            given=f"{HUB}{place.name}: {', '.join(lost)}",
            remedy="see the .gitignore of the repository, then push again",
        )


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """The library's own bars, only where somebody watches."""
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils
    hide = not shown and not utils.are_progress_bars_disabled()
    if hide:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            utils.enable_progress_bars()
