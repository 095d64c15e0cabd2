"""Decision models behind the service (`--upstream`), and merged answers.

An artifact answers a question if it knows it and is sure; all others go upstream in one request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from kdc.artifact.manifest import Manifest
from kdc.common.errors import KdcError
from kdc.serving.http.api.asked import Answered, Asked, Numbers, answers
from kdc.serving.http.api.decided import AnswerObject, DecisionBody, Key, verdict, without
from kdc.serving.http.api.inference import cancelled_when_gone
from kdc.serving.http.api.relaying import SOURCE, Relayed, error_of, passed, target
from kdc.serving.http.api.request_body import decoded, read_bytes
from kdc.serving.http.metrics import Metrics
from kdc.serving.http.model import Model
from kdc.serving.http.replies import ABSTAINED, ApiError, JsonResponse
from kdc.serving.http.settings import ServeSettings
from kdc.serving.upstream.address import is_plain_text
from kdc.serving.upstream.auditor import Audit, Auditor
from kdc.serving.upstream.client import KEY, Options, Upstream
from kdc.serving.upstream.reply import Reply, UpstreamFailed, unusable

log = logging.getLogger("kdc.serve")

T = TypeVar("T")


@dataclass
class _Decision:
    body: DecisionBody
    document: dict[str, Any]
    raw: bytes
    asked: dict[Any, Asked | None]
    state: Any
    # "sure": the question is answered here; else why it goes upstream.
    reasons: dict[Any, str] = field(default_factory=dict)
    numbers: dict[Any, Numbers] = field(default_factory=dict)  # of the questions asked here
    tokens: int = 0
    models: str = ""
    upstream_failed: bool = False

    @property
    def rest(self) -> list[Key]:
        return [key for key, reason in self.reasons.items() if reason != "sure"]

    def own(self, key: Key, **more: object) -> AnswerObject:
        return self.body.answer(self.body.by_key[key], self.numbers[key]) | more | {"x_source": "local"}


def opened(settings: ServeSettings, models: Mapping[str, Model], metrics: Metrics) -> Forwarding:
    """Make it in the event loop."""
    assert settings.upstream is not None
    options = Options(
        url=settings.upstream,
        networks=settings.upstream_networks,
        timeout_s=settings.upstream_timeout_s,
        connections=settings.upstream_connections,
        most_bytes=settings.max_body_bytes,
        most_streamed_bytes=settings.max_reply_bytes,
        forwards_key=settings.forward_key,
    )
    upstream = Upstream(options, metrics.asked_upstream)
    auditor = Auditor(upstream, settings.audit, settings.audit_budget, settings.state_folder, metrics, decode_reply)
    for name, model in models.items():
        if model.engine.manifest is not None:
            auditor.check(name, model.engine.manifest)
        if model.questions and model.engine.task.abstain is None:
            log.warning("%s: has no threshold (--defer), so it answers its questions however unsure it is", name)
    if upstream.spends_own_key and settings.api_key_env is None:
        log.warning("whoever reaches this service spends %s; --api-key-env asks for a key", KEY)
    if (upstream.spends_own_key or settings.forward_key) and is_plain_text(settings.upstream):
        log.warning("the upstream's key crosses the network unencrypted; use https")
    auditor.start()
    return Forwarding(settings, upstream, auditor, metrics)


class Forwarding:
    def __init__(self, settings: ServeSettings, upstream: Upstream, auditor: Auditor, metrics: Metrics) -> None:
        self._settings, self._upstream, self._auditor, self._metrics = settings, upstream, auditor, metrics

    async def close(self) -> None:
        await self._auditor.close()
        await self._upstream.close()

    async def answer(
        self,
        request: Request,
        raw: bytes,
        document: dict[str, Any],
        body: DecisionBody,
        asked: dict[Any, Asked | None],
        state: Any,
    ) -> Response:
        decision = _Decision(body, document, raw, asked, state)
        decision.reasons = {key: self._reason(request, each) for key, each in asked.items()}
        await self._ask_here(request, decision, [key for key, reason in decision.reasons.items() if reason == "sure"])
        price = self._settings.upstream_price / 1000
        for key, each in asked.items():
            source = "local" if decision.reasons[key] == "sure" else "upstream"
            self._metrics.decided("none" if each is None else each.model.name, source, decision.reasons[key], price)
        response: Response
        if not decision.rest:
            response = JsonResponse(
                body.reply([decision.own(key) for key in asked], decision.models, decision.tokens),
                headers={SOURCE: "local"},
            )
        else:
            response = await self._merged(request, decision)
        # If the upstream failed, answers below their threshold must not count as deferred.
        if response.status_code == 200 and not decision.upstream_failed:
            self._audit(request, decision)
        return response

    def _reason(self, request: Request, asked: Asked | None) -> str:
        if asked is None:
            return "unknown"
        if self._settings.forward_key:
            key = request.headers.get("authorization")
            if key is None or not self._upstream.keys.is_accepted(key, time.monotonic()):
                return "key"
        return "stopped" if self._auditor.has_stopped(asked.model.name, _manifest(asked)) else "sure"

    async def _ask_here(self, request: Request, decision: _Decision, keys: Sequence[Key]) -> None:
        """Ask the artifacts. If they fail, as with a full queue, the upstream answers."""
        known = [asked for key in keys if (asked := decision.asked[key]) is not None]
        if not known:
            return
        try:
            answered: Answered = await answers(request, known, decision.state)
        except (ApiError, KdcError):
            decision.reasons |= dict.fromkeys(keys, "failed")
            return
        decision.numbers |= dict(zip(keys, answered.numbers, strict=True))
        decision.tokens, decision.models = answered.tokens, answered.models
        unsure = [key for key in keys if decision.numbers[key].more]
        decision.reasons |= dict.fromkeys(unsure, "unsure")

    async def _merged(self, request: Request, decision: _Decision) -> Response:
        rest = decision.rest
        is_whole = len(rest) == len(decision.asked)
        body = decision.raw if is_whole else orjson.dumps(without(decision.document, rest))

        def read(reply: Reply) -> tuple[Reply, Any, list[AnswerObject]]:
            if not reply.is_answer:
                return reply, None, []
            content = decode_reply(reply)
            return reply, content, decision.body.answers_in(content, rest)

        try:
            reply, content, theirs = await self._ask(request, body, read)
        except UpstreamFailed as failure:
            return self._without_upstream(decision, failure)
        if not reply.is_answer:
            return passed(reply)
        request.scope.pop(ABSTAINED, None)  # the upstream answered the abstentions
        by_key = {key: answer | {"x_source": "upstream"} for key, answer in zip(rest, theirs, strict=True)}
        given = [by_key.get(key) or decision.own(key) for key in decision.asked]
        source = "upstream" if is_whole else "mixed"
        merged = decision.body.merged(given, content, 0 if is_whole else decision.tokens)
        return JsonResponse(merged, headers=reply.headers | {SOURCE: source, "content-type": "application/json"})

    def _without_upstream(self, decision: _Decision, failure: UpstreamFailed) -> Response:
        decision.upstream_failed = True
        if self._settings.when_upstream_fails == "answer" and decision.numbers.keys() == decision.asked.keys():
            rest = set(decision.rest)
            given = [
                decision.own(key, **({"x_below_threshold": True} if key in rest else {})) for key in decision.asked
            ]
            reply = decision.body.reply(given, decision.models, decision.tokens)
            return JsonResponse(reply, headers={SOURCE: "local"})
        raise error_of(failure)

    def _audit(self, request: Request, decision: _Decision) -> None:
        for key, reason in decision.reasons.items():
            asked = decision.asked[key]
            if asked is None or reason == "stopped" or not self._auditor.draw():
                continue
            alone = orjson.dumps(without(decision.document, [key])) if reason == "sure" else b""
            own = verdict(decision.own(key)) if reason == "sure" else None

            def differs(reply: Any, key: Key = key, own: object = own) -> bool:
                return verdict(decision.body.answers_in(reply, [key])[0]) != own

            path, caller = target(request), request.headers.get("authorization")
            self._auditor.submit(Audit(asked.model.name, _manifest(asked), path, alone, caller, differs))

    async def whole(self, request: Request, raw: bytes) -> Response:
        try:
            return passed(await self._ask(request, raw, lambda reply: reply))
        except UpstreamFailed as failure:
            raise error_of(failure) from None

    async def _ask(self, request: Request, body: bytes, read: Callable[[Reply], T]) -> T:
        def held(reply: Reply) -> T:
            request.app.state.gate.hold(request.scope, len(reply.body))
            return read(reply)

        with cancelled_when_gone(request):
            return await self._upstream.ask(target(request), body, request.headers.get("authorization"), held)

    async def models(self, request: Request, own: dict[str, Any]) -> Response:
        try:
            async with self._upstream.open("GET", target(request), b"", request.headers) as (reply, parts):
                theirs = decode_reply(Reply(reply.status, {}, b"".join([part async for part in parts])))
        except UpstreamFailed:
            return JsonResponse(own, headers={SOURCE: "local"})
        for name in ("data", "models"):
            more = theirs.get(name) if isinstance(theirs, dict) else None
            own[name] += more if isinstance(more, list) else []
        return JsonResponse(own, headers={SOURCE: "mixed"})

    async def relay(self, request: Request) -> Response:
        if self._upstream.spends_own_key and self._settings.api_key_env is None:
            what = "the upstream's other routes take its key; serve with --api-key-env or --forward-key to open them"
            raise ApiError(404, what)
        if {".", ".."} & set(request.scope["path"].replace("\\", "/").split("/")):
            raise ApiError(404, "there is no such route; the path climbs")
        return Relayed(self._upstream, request, await read_bytes(request))


def decode_reply(reply: Reply) -> Any:
    if not reply.is_answer:
        raise unusable(f"has status {reply.status}")
    try:
        return decoded(reply.body)
    except ApiError:
        raise unusable("is no JSON") from None


def _manifest(asked: Asked) -> Manifest:
    manifest = asked.model.engine.manifest
    assert manifest is not None
    return manifest
