"""A changed artifact takes over without a pause; a bad one is refused and the old one stays."""

import asyncio
import gc
import json
import logging
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import httpx2
import pytest
from bag_models import WORDS, write_artifact
from live import running
from reloads import eventually, expected_scores, link, raw_scores

from kdc.artifact.folder import load_manifest
from kdc.common.errors import InputError
from kdc.serving.engine.engine import Engine
from kdc.serving.http import registry
from kdc.serving.http.artifacts import paths_by_name
from kdc.serving.http.settings import ServeSettings


def test_a_new_artifact_takes_over_and_no_request_fails(tmp_path: Path) -> None:
    place = link(write_artifact(tmp_path / "one"), tmp_path / "artifact")
    with running(place, reload_s=0.05) as url:
        assert raw_scores(url) == expected_scores(1.0)
        seen, stop = [], threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                seen.append(raw_scores(url))

        thread = threading.Thread(target=keep_asking)
        thread.start()
        link(write_artifact(tmp_path / "two", scale=3.0), place)
        eventually(lambda: bool(seen) and seen[-1] == expected_scores(3.0))
        stop.set()
        thread.join()
        kinds = [answer == expected_scores(3.0) for answer in seen]
        assert kinds == sorted(kinds)  # the old one, then the new one, never back
        assert all(answer in (expected_scores(1.0), expected_scores(3.0)) for answer in seen)


def test_every_answer_tells_which_artifact_gave_it(tmp_path: Path) -> None:
    """Would catch a route without the header, and one that goes on to name the artifact of before a reload."""
    place = link(write_artifact(tmp_path / "one"), tmp_path / "artifact")
    old = load_manifest(place).sha256[:16]
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["w1"]}
    v2 = f"/v2/models/{tmp_path.name}"
    bodies: dict[str, Any] = {
        "/": {"inputs": "w1"},
        "/predict": {"inputs": "w1"},
        "/classify": {"texts": ["w1"]},
        f"{v2}/infer": {"inputs": [tensor]},
        f"{v2}/versions/1/infer": {"inputs": [tensor]},
    }

    def told(url: str) -> set[str]:
        return {httpx2.post(url + path, json=body).headers["x-artifact"] for path, body in bodies.items()}

    with running(place, reload_s=0.05) as url:
        assert told(url) == {old}
        new = load_manifest(link(write_artifact(tmp_path / "two", scale=3.0), place)).sha256[:16]
        eventually(lambda: raw_scores(url) == expected_scores(3.0))
        assert told(url) == {new}
        assert httpx2.get(url + v2).json()["versions"] == [new]
        reply = httpx2.post(f"{url}{v2}/versions/{new}/infer", json={"inputs": [tensor]})
        assert reply.json()["model_version"] == new
        assert httpx2.post(f"{url}{v2}/versions/{old}/infer", json={"inputs": [tensor]}).status_code == 404
        shown = httpx2.get(f"{url}/metrics").text
        assert f'kdc_artifact_info{{artifact="{new}",model="{tmp_path.name}",provider="CPUExecutionProvider"' in shown
        assert old not in shown


def test_an_artifact_replaced_in_place_is_seen_too(tmp_path: Path) -> None:
    place = write_artifact(tmp_path / "artifact")
    other = write_artifact(tmp_path / "other", scale=2.0)
    with running(place, reload_s=0.05) as url:
        place.rename(tmp_path / "old")
        other.rename(place)
        eventually(lambda: raw_scores(url) == expected_scores(2.0))


def test_an_artifact_that_is_not_the_expected_one_does_not_take_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = link(write_artifact(tmp_path / "one"), tmp_path / "artifact")
    expected = load_manifest(place).sha256
    with running(place, reload_s=0.05, expect_sha256=expected) as url, caplog.at_level(logging.ERROR):
        link(write_artifact(tmp_path / "two", scale=3.0), place)
        eventually(lambda: "not the artifact that was expected" in caplog.text)
        assert raw_scores(url) == expected_scores(1.0)


def test_requests_in_flight_finish_on_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, run, held = threading.Event(), Engine.run, threading.Event()

    def slow(self: Engine, encodings: Any) -> Any:
        if WORDS["w7"] in encodings[0].ids:
            held.set()
            assert gate.wait(20)
        return run(self, encodings)

    monkeypatch.setattr(Engine, "run", slow)  # a row by itself
    place = link(write_artifact(tmp_path / "one"), tmp_path / "artifact")

    def sha(url: str) -> str:
        return str(httpx2.get(f"{url}/info").json()["model_sha"])

    async def scenario(url: str) -> None:
        old = sha(url)
        body = {"inputs": "w7", "raw_scores": True}
        before = asyncio.create_task(asyncio.to_thread(httpx2.post, f"{url}/predict", json=body, timeout=30))
        await asyncio.to_thread(held.wait, 10)
        link(write_artifact(tmp_path / "two", scale=3.0), place)
        await asyncio.to_thread(eventually, lambda: sha(url) != old)
        assert await asyncio.to_thread(raw_scores, url) == expected_scores(3.0)  # the new one answers beside it
        assert not before.done()
        gate.set()
        late = await before
        assert sorted(entry["score"] for entry in late.json()) == expected_scores(1.0, "w7")
        assert late.headers["x-artifact"] == old[:16]

    with running(place, reload_s=0.05) as url:
        asyncio.run(scenario(url))


@pytest.mark.parametrize("damage", ["manifest", "model", "missing", "panic"])
def test_a_bad_artifact_is_refused_logged_and_the_old_one_stays(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = link(write_artifact(tmp_path / "one"), tmp_path / "artifact")
    bad = write_artifact(tmp_path / "bad", scale=3.0)
    if damage == "missing":
        (bad / "tokenizer.json").unlink()
    elif damage == "panic":  # of the library in Rust
        tokenizer = json.loads((bad / "tokenizer.json").read_bytes())
        tokenizer["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
        (tmp_path / "panic.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        write_artifact(bad, tokenizer=tmp_path / "panic.json")
    else:
        file = bad / {"manifest": "manifest.json", "model": "model.int8.onnx"}[damage]
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with caplog.at_level(logging.ERROR), running(place, reload_s=0.05) as url:
        link(bad, place)
        eventually(lambda: "the new artifact is refused" in caplog.text)
        assert raw_scores(url) == expected_scores(1.0)
        eventually(lambda: f'kdc_artifact_refused{{model="{tmp_path.name}"}} 1.0' in httpx2.get(f"{url}/metrics").text)
        link(write_artifact(tmp_path / "good", scale=2.0), place)  # and a good one after it is taken
        eventually(lambda: raw_scores(url) == expected_scores(2.0))
        eventually(lambda: f'kdc_artifact_refused{{model="{tmp_path.name}"}} 0.0' in httpx2.get(f"{url}/metrics").text)


def test_an_artifact_that_is_gone_is_told_and_the_old_one_stays_until_there_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch a link that leads nowhere, with which no pod can start, and which nobody hears of."""
    place = link(write_artifact(tmp_path / "one"), tmp_path / "artifact")
    told = f'kdc_artifact_refused{{model="{tmp_path.name}"}} '
    with caplog.at_level(logging.ERROR), running(place, reload_s=0.05) as url:
        link(tmp_path / "no-such-folder", place)
        eventually(lambda: f"{told}1.0" in httpx2.get(f"{url}/metrics").text)
        assert caplog.text.count("there is no artifact any more") == 1
        assert raw_scores(url) == expected_scores(1.0)
        link(tmp_path / "one", place)
        eventually(lambda: f"{told}0.0" in httpx2.get(f"{url}/metrics").text)
        assert raw_scores(url) == expected_scores(1.0)


def test_an_artifact_that_is_copied_into_place_is_taken_once_it_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, new = write_artifact(tmp_path / "artifact"), write_artifact(tmp_path / "new", scale=2.0)
    names = sorted(file.name for file in new.iterdir())
    with caplog.at_level(logging.ERROR), running(place, reload_s=0.05) as url:
        for name in ["manifest.json", *(name for name in names if name != "manifest.json")]:  # the worst order
            shutil.copy(new / name, place / name)
            if name == "manifest.json":
                eventually(lambda: "the new artifact is refused" in caplog.text)
                assert raw_scores(url) == expected_scores(1.0)
        eventually(lambda: raw_scores(url) == expected_scores(2.0))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "model.onnx"), RuntimeError("anything")])
def test_after_any_error_in_a_reload_the_next_artifact_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    place = link(write_artifact(tmp_path / "one"), tmp_path / "artifact")

    def refuse(*_: object) -> None:
        raise error

    with caplog.at_level(logging.ERROR), running(place, reload_s=0.05) as url:
        monkeypatch.setattr("kdc.artifact.folder.opened", refuse)
        bad = tmp_path / "bad"
        shutil.copytree(tmp_path / "one", bad)
        link(bad, place)
        eventually(lambda: "the new artifact is refused" in caplog.text)
        assert raw_scores(url) == expected_scores(1.0)
        monkeypatch.undo()
        link(write_artifact(tmp_path / "good", scale=2.0), place)
        eventually(lambda: raw_scores(url) == expected_scores(2.0))


def test_the_other_side_is_cut_by_the_loaded_artifact_not_by_the_one_on_disk(tmp_path: Path) -> None:
    place = link(write_artifact(tmp_path / "one"), tmp_path / "artifact")
    with running(place, reload_s=0) as url:
        shutil.rmtree(tmp_path / "one")
        reply = httpx2.post(
            f"{url}/predict", json={"inputs": "w1", "raw_scores": True, "truncation_direction": "left"}, timeout=30
        )
        assert sorted(entry["score"] for entry in reply.json()) == expected_scores(1.0)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("runs/qnli/artifact", ["qnli"]),
        ("a=x,b=y", ["a", "b"]),
        ("runs/lr=3e-5/artifact", ["lr-3e-5"]),
        ("runs/настроение 2/artifact", ["2"]),
        ("/artifact", ["model"]),
    ],
)
def test_names_are_fit_for_routes_and_headers(text: str, names: list[str]) -> None:
    assert list(paths_by_name(text)) == names


@pytest.mark.parametrize("text", ["настроение=x", "a b=x", "a=x,a=y", "", " , "])
def test_a_name_that_no_route_can_have_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        paths_by_name(text)


def test_a_volume_that_hangs_is_told_and_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch a look at one artifact that ends the reloads of the others, and one that nobody hears of."""
    places = {name: link(write_artifact(tmp_path / f"{name}1"), tmp_path / name) for name in ("a", "b")}
    hangs, over, look = threading.Event(), threading.Event(), registry._identity

    def hanging(path: Path) -> object:
        if hangs.is_set() and path == places["a"]:
            assert over.wait(30)
        return look(path)

    def told(url: str, value: str) -> bool:
        return f'kdc_artifact_refused{{model="a"}} {value}' in httpx2.get(f"{url}/metrics", timeout=3).text

    monkeypatch.setattr(registry, "_identity", hanging)
    monkeypatch.setattr("kdc.serving.http.registry.PATIENCE_S", 0.1)
    with caplog.at_level(logging.ERROR), running(f"a={places['a']},b={places['b']}", reload_s=0.05) as url:
        hangs.set()
        eventually(lambda: told(url, "1.0"))
        link(write_artifact(tmp_path / "b2", scale=2.0), places["b"])
        eventually(lambda: raw_scores(url, path="/predict/b") == expected_scores(2.0))
        assert raw_scores(url, path="/predict/a") == expected_scores(1.0)
        assert caplog.text.count("a: the artifact could not be read within") == 1
        link(write_artifact(tmp_path / "a2", scale=3.0), places["a"])
        over.set()
        eventually(lambda: raw_scores(url, path="/predict/a") == expected_scores(3.0))
        eventually(lambda: told(url, "0.0"))


def test_a_look_that_fails_is_not_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place, look, fails = link(write_artifact(tmp_path / "one"), tmp_path / "place"), registry._identity, [False]

    def failing(path: Path) -> object:
        if fails[0]:
            raise MemoryError
        return look(path)

    monkeypatch.setattr(registry, "_identity", failing)
    with caplog.at_level(logging.ERROR), running(str(place), reload_s=0.05) as url:
        fails[0] = True
        eventually(lambda: "cannot be checked" in caplog.text)
        link(write_artifact(tmp_path / "two", scale=2.0), place)
        fails[0] = False
        eventually(lambda: raw_scores(url) == expected_scores(2.0))


def test_a_hung_volume_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a thread that the end of the loop, or of the process, waits for."""
    looks, over, look = threading.Event(), threading.Event(), registry._identity

    def hanging(path: Path) -> object:
        if threading.current_thread().name == "kdc-reader":
            looks.set()
            assert over.wait(60)
        return look(path)

    monkeypatch.setattr(registry, "_identity", hanging)
    with running(write_artifact(tmp_path / "one"), reload_s=0.05):  # it fails where its end takes 15 seconds
        assert looks.wait(10)
    reader = next(each for each in threading.enumerate() if each.name == "kdc-reader")
    assert reader.daemon
    over.set()


def test_a_replaced_engine_is_gone_once_its_last_request_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch anything that keeps the memory of an old model: a reference, or a cycle that waits for a garbage
    collection."""
    held, over, run = threading.Event(), threading.Event(), Engine.run

    def slow(self: Engine, encodings: Any) -> Any:
        held.set()
        assert over.wait(20)
        return run(self, encodings)

    async def replaced_by(name: str, served: registry.Registry) -> None:
        link(write_artifact(tmp_path / name, scale=len(name)), place)
        while served.first.artifact != load_manifest(place).sha256[:16]:
            await asyncio.sleep(0.01)

    async def scenario() -> list[weakref.ref[Any]]:
        served = registry.Registry(ServeSettings(artifact=str(place), device="cpu", threads=2, reload_s=0.01))
        served.load()
        watcher = asyncio.create_task(served.watch())
        await replaced_by("two", served)  # an engine that a reload made
        old, passes = served.first, served.first.engine._passes
        parts = (old, old.engine, old.engine._tokenizer, passes, passes._session, passes._beside)
        refs = [weakref.ref(part) for part in parts]
        answering = asyncio.create_task(old.answer(["w1 w2"]))
        await asyncio.to_thread(held.wait, 10)
        del old, passes, parts
        await replaced_by("three", served)
        assert all(ref() is not None for ref in refs)  # its request is not answered yet
        over.set()
        await answering
        del answering
        while served._closing:
            await asyncio.sleep(0.01)
        watcher.cancel()
        await served.close()
        return refs

    monkeypatch.setattr(Engine, "run", slow)
    place = link(write_artifact(tmp_path / "one"), tmp_path / "artifact")
    gc.disable()
    try:
        refs = asyncio.run(asyncio.wait_for(scenario(), 30))
        assert [ref() for ref in refs] == [None] * len(refs)
    finally:
        gc.enable()


def test_an_artifact_that_goes_away_changes_nothing(tmp_path: Path) -> None:
    place = write_artifact(tmp_path / "artifact")
    with running(place, reload_s=0.05) as url:
        shutil.rmtree(place)
        time.sleep(0.3)
        assert raw_scores(url) == expected_scores(1.0)


def test_two_artifacts_are_served_by_name(tmp_path: Path) -> None:
    one, two = write_artifact(tmp_path / "one"), write_artifact(tmp_path / "two", scale=2.0)
    with running(f"a={one},b={two}") as url:
        info = httpx2.get(f"{url}/info").json()
        assert (info["model_id"], info["models"]) == ("a", ["a", "b"])
        replies = {
            name: httpx2.post(f"{url}/classify", json={"texts": ["w1 w5"], "model": name}).json()[0][0]["score"]
            for name in ("a", "b")
        }
        for place, body in (("/predict/b", {}), ("/predict", {"model": "b"}), ("/predict/b", {"model": "a"})):
            reply = httpx2.post(url + place, json={"inputs": "w1 w5"} | body)
            assert reply.json()[0]["score"] == pytest.approx(replies["b"], abs=1e-6)
            assert reply.headers["x-model"] == "b"
        for place, body in (("/predict/c", {}), ("/predict", {"model": "c"})):
            unknown = httpx2.post(url + place, json={"inputs": "w1"} | body)
            assert (unknown.status_code, "it serves: a, b" in unknown.json()["error"]) == (404, True)
        for name, path in (("a", one), ("b", two)):
            assert replies[name] == pytest.approx(Engine.load(path, device="cpu").predict(["w1 w5"]).max(), abs=1e-6)
        for name in ("a", "b"):
            assert httpx2.get(f"{url}/v2/models/{name}").json()["name"] == name
