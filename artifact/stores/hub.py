"""Artifacts in model repositories of the Hugging Face hub.

kdc downloads files itself, to bound sizes and resume. A push is one commit.
"""

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from kdc.artifact.manifest import MANIFEST_NAME, SIGNATURE_NAME
from kdc.artifact.stores.addresses import HUB, Repository
from kdc.artifact.stores.hub_layout import copied_files, is_hugging_face, is_of_layout, path_of, write_made_files
from kdc.artifact.stores.sources import Opened, Outgoing, Source
from kdc.common.errors import InputError, KdcError
from kdc.common.files import sha256_of
from kdc.common.places import reaching
from kdc.common.web import leads_inside

# Without it, each request names torch's version and the coding agent around it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
_TIMEOUT_S = 30.0
_TRIES = 4  # attempts in a row that bring no byte
_PAUSE_S = 0.5  # before the second attempt; then doubles
_CHUNK_BYTES = 1024 * 1024
_REMEDY = (
    "check the name and the network; private repositories and pushes need HF_TOKEN (or `hf auth login`); "
    "the same command again resumes"
)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class HubSource(Source):
    """An artifact at one commit; later pushes do not change it."""

    def __init__(self, repository: Repository) -> None:
        self._name = repository.name
        self.address = str(repository)
        with _asking_hub(self.address):
            api = _hub_api()
            info = api.repo_info(self._name, revision=repository.revision, files_metadata=True, timeout=_TIMEOUT_S)
        self._commit, self._endpoint = info.sha, api.endpoint
        self._sizes = {file.rfilename: file.size for file in info.siblings or ()}
        self._client = httpx2.Client(
            follow_redirects=True,
            max_redirects=5,
            timeout=_TIMEOUT_S,
            event_hooks={"request": [lambda request: _check_safe(str(request.url), self._endpoint)]},
        )

    def open(self, name: str, offset: int = 0) -> Opened:
        if name not in self._sizes:
            raise FileNotFoundError(name)
        chunks = self._stream(name, offset)
        return Opened(next(chunks), self._sizes[name], chunks)

    def _stream(self, name: str, offset: int) -> Generator[Any, None, None]:
        """Yield the first byte's position, then chunks. Resumes after a broken connection or a busy reply."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        address = f"{self.address}/{name}"
        url = hf_hub_url(self._name, name, revision=self._commit, endpoint=self._endpoint)
        headers = {**build_hf_headers(), "accept-encoding": "identity"}
        position, has_begun, failures = offset, False, 0
        with reaching(address, _REMEDY):
            while True:
                span = {"range": f"bytes={position}-"} if position else {}
                try:
                    with self._client.stream("GET", url, headers=headers | span) as response:
                        _refuse_failure(response, address)
                        begins = position if response.status_code == 206 else 0
                        if not has_begun:
                            has_begun, position = True, begins
                            yield begins
                        elif begins != position:
                            raise KdcError("the hub cannot resume a file", given=address, remedy=_REMEDY)
                        # raw: decompressed bytes could exceed the checked size
                        for chunk in response.iter_raw(_CHUNK_BYTES):
                            position += len(chunk)
                            failures = 0
                            yield chunk
                        return
                except (httpx2.TransportError, _Busy):
                    failures += 1
                    if failures == _TRIES:
                        raise
                time.sleep(_PAUSE_S * 2 ** (failures - 1))


class _Busy(KdcError):
    """A retry may help."""


def _refuse_failure(response: httpx2.Response, address: str) -> None:
    status = response.status_code
    if status not in (200, 206):
        kind = _Busy if status == 429 or status >= 500 else KdcError
        raise kind("the hub refused", given=f"{address}: HTTP {status}", remedy=_REMEDY)


def _hub_api() -> Any:
    from huggingface_hub import HfApi, constants

    _check_safe(constants.ENDPOINT, constants.ENDPOINT)
    return HfApi(endpoint=constants.ENDPOINT, library_name="kdc")


def _check_safe(url: str, endpoint: str) -> None:
    """Refuse plain http (except to a local hub), and redirects from the internet to private addresses."""
    host, hub = str(urlsplit(url).hostname), str(urlsplit(endpoint).hostname)
    if urlsplit(url).scheme != "https" and not (host in _LOOPBACK and hub in _LOOPBACK):
        raise InputError("the hub must be reached by https", given=host, remedy="set HF_ENDPOINT to an https address")
    if leads_inside(hub, host):
        remedy = "set HF_ENDPOINT to it, if you trust it"
        raise KdcError("the hub redirects to a private address", given=host, remedy=remedy)


@contextmanager
def _asking_hub(address: str) -> Iterator[None]:
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    try:
        with reaching(address, _REMEDY, passing=(OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError)):
            yield
    except RevisionNotFoundError as error:
        remedy = "name a branch or tag it has"
        raise InputError("the repository has no such revision", given=address, remedy=remedy) from error
    except RepositoryNotFoundError as error:
        what = "the hub has no such repository, or does not show it"
        raise InputError(what, given=address, remedy=_REMEDY) from error
    except OfflineModeIsEnabled as error:
        raise InputError("the hub is switched off", given="HF_HUB_OFFLINE", remedy="unset it") from error


def push_to_hub(repository: Repository, artifact: Outgoing, *, public: bool) -> tuple[int | None, str]:
    """Commit files that differ, in the hub's layout, and remove other files of the previous artifact.

    Returns:
        Bytes that differ (None: all was there), and the commit's address.

    Raises:
        InputError: this token may not see the repository.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    manifest = artifact.manifest
    with tempfile.TemporaryDirectory() as scratch, _asking_hub(str(repository)):
        api = _hub_api()
        before = _branch(api, repository, public)
        files = _files_of(artifact, Path(scratch))
        differing = _differing(before, files)
        if not differing:
            return None, f"{HUB}{repository.name}@{before.sha}"
        operations = [CommitOperationAdd(name, str(files[name])) for name in differing]
        operations += _removals(repository, before, files)
        if not sys.stderr.isatty():
            disable_progress_bars()
        commit = api.create_commit(
            repository.name,
            operations,
            revision=repository.revision,
            parent_commit=before.sha,
            commit_message=f"{manifest.task.name}: artifact {manifest.sha256[:12]}",
        )
        address = f"{HUB}{repository.name}@{commit.oid}"
        after = api.repo_info(repository.name, revision=commit.oid, files_metadata=True, timeout=_TIMEOUT_S)
        # The hub silently skips files in .gitignore.
        if lost := _differing(after, files):
            given, remedy = f"{address}: {', '.join(lost)}", "check the repository's .gitignore, then push again"
            raise KdcError("the hub took the commit without some files", given=given, remedy=remedy)
        return sum(files[name].stat().st_size for name in differing), address


def _files_of(artifact: Outgoing, scratch: Path) -> dict[str, Path]:
    has_layout = is_hugging_face(artifact.manifest)
    files = {name: artifact.folder / name for name in artifact.manifest.files}
    if has_layout:
        files = copied_files(artifact.folder, artifact.manifest)
        write_made_files(artifact.folder, artifact.manifest, scratch)
    for name, content in artifact.by_name.items():
        path = scratch / (path_of(name) if has_layout else name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return files | {path.relative_to(scratch).as_posix(): path for path in scratch.rglob("*") if path.is_file()}


def _branch(api: Any, repository: Repository, public: bool) -> Any:
    from huggingface_hub.errors import RevisionNotFoundError

    name, branch = repository.name, repository.revision
    api.create_repo(name, private=not public, exist_ok=True)
    ask = partial(api.repo_info, name, revision=branch, files_metadata=True, timeout=_TIMEOUT_S)
    try:
        return ask()
    except RevisionNotFoundError:
        api.create_branch(name, branch=branch, exist_ok=True)
    return ask()


def _differing(commit: Any, files: Mapping[str, Path]) -> list[str]:
    stored = {file.rfilename: file for file in commit.siblings or ()}
    return [name for name, path in files.items() if name not in stored or not _is_same(stored[name], path)]


def _is_same(stored: Any, path: Path) -> bool:
    if stored.size != path.stat().st_size:
        return False
    if stored.lfs is not None:
        return bool(stored.lfs.sha256 == sha256_of(path))
    content = b"blob %d\0" % stored.size + path.read_bytes()
    return bool(stored.blob_id == hashlib.sha1(content, usedforsecurity=False).hexdigest())


def _removals(repository: Repository, before: Any, files: Mapping[str, Path]) -> list[Any]:
    from huggingface_hub import CommitOperationDelete

    source = HubSource(Repository(repository.name, before.sha))
    try:
        old = source.read_documents().manifest
    except KdcError:  # its files are unknown
        return []
    stored = {file.rfilename for file in before.siblings or ()}
    outdated = {*old.files, MANIFEST_NAME, SIGNATURE_NAME}
    if source.has_hub_layout:
        outdated = {*filter(is_of_layout, stored)}
    return [CommitOperationDelete(name) for name in sorted(stored & outdated - files.keys())]
