import asyncio
import functools

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from kdc.serving.http.api import classify, decisions, moderations, pages, systemone, tei, v2
from kdc.serving.http.api.openapi import ANSWERED, COMPUTE, PAGE, PLAIN, SOURCED, Json, Operation, document
from kdc.serving.http.metrics import CONTENT_TYPE
from kdc.serving.http.replies import DECISIONS, SYSTEM_ONE, JsonResponse

_V2 = "Open Inference Protocol"
_GUARDED = (401, 429, 500, 503, 504)
_INFERENCE = (400, 404, 413, 415, 422, 424, *_GUARDED)


async def _live(_: Request) -> Response:
    """Whether the process lives."""
    return PlainTextResponse("yes\n")  # BentoML's answer keeps memory


async def _ready(request: Request) -> Response:
    """Whether requests are taken."""
    is_ready = request.app.state.gate.is_ready()
    return PlainTextResponse("yes\n", 200) if is_ready else PlainTextResponse("no\n", 503)


async def _metrics(request: Request) -> Response:
    """Prometheus metrics of all workers."""
    metrics = request.app.state.metrics
    # Use a thread. Thousands of labels take 0.1 s.
    return Response(metrics.told() or await asyncio.to_thread(metrics.exposition), media_type=CONTENT_TYPE)


async def _description(_: Request) -> Response:
    """This OpenAPI document."""
    return _written()


@functools.cache  # it takes milliseconds
def _written() -> Response:
    return JsonResponse(describe())


def describe() -> Json:
    return document(OPERATIONS)


_get = functools.partial(Operation, errors=(500,))
_page = functools.partial(_get, tag="pages", media=PAGE)
_probe = functools.partial(_get, media=PLAIN)
_ask = functools.partial(Operation, method="POST", tag="inference", errors=_INFERENCE, headers=ANSWERED)
_decide = functools.partial(_ask, errors=(*_INFERENCE, 502), headers=ANSWERED | SOURCED)
_predict = functools.partial(
    _ask, handler=tei.predict, bodies=(tei.PredictRequest,), reply=("Predictions",), headers=COMPUTE | ANSWERED
)
_infer = functools.partial(
    _ask,
    handler=v2.infer,
    tag=_V2,
    bodies=(v2.InferRequest,),
    reply=("InferReply",),
    is_binary=True,
)


def _of_a_model(path: str, suffix: str) -> list[Operation]:
    model = functools.partial(Operation, errors=(404, *_GUARDED), tag=_V2)
    return [
        model(path=path, handler=v2.model_metadata, name=f"Model{suffix}"),
        model(path=f"{path}/ready", handler=v2.model_ready, name=f"Model ready{suffix}"),
        _infer(path=f"{path}/infer", name=f"Infer{suffix}"),
    ]


OPERATIONS = [
    _predict(path="/", name="Predict root"),
    _predict(path="/predict", name="Predict"),
    _predict(path="/predict/{name}", name="Predict by"),
    _ask(
        path="/classify",
        handler=classify.classify,
        name="Classify",
        bodies=(classify.ClassifyRequest, classify.VllmRequest, tei.PredictRequest),
        reply=("Predictions", "VllmReply"),
    ),
    _ask(
        path="/v1/moderations",
        handler=moderations.moderate,
        name="Moderate",
        bodies=(moderations.ModerationRequest,),
        reply=("Moderations",),
    ),
    _decide(
        path=SYSTEM_ONE,
        handler=systemone.system_one,
        name="System One",
        bodies=(systemone.SystemOneRequest,),
        reply=("SystemOne",),
    ),
    _decide(
        path=DECISIONS,
        handler=decisions.decide,
        name="Decide",
        bodies=(decisions.DecisionRequest,),
        reply=("Decision",),
    ),
    Operation(path="/v1/models", handler=decisions.models, name="Models", errors=_GUARDED, reply=("Models",)),
    Operation(path="/info", handler=tei.info, name="Info", errors=_GUARDED, reply=("Info",)),
    Operation(path="/v2", handler=v2.server_metadata, name="Server", errors=_GUARDED),
    _get(path="/v2/health/live", handler=v2.live, name="Live"),
    _get(path="/v2/health/ready", handler=v2.ready, name="Ready", errors=(500, 503)),
    *_of_a_model("/v2/models/{name}", ""),
    *_of_a_model("/v2/models/{name}/versions/{version}", " version"),
    _get(path="/health", handler=tei.health, name="Health", errors=(500, 503)),
    _probe(path="/livez", handler=_live, name="Livez"),
    _probe(path="/healthz", handler=_live, name="Healthz"),
    _probe(path="/readyz", handler=_ready, name="Readyz", errors=(500, 503)),
    _probe(path="/metrics", handler=_metrics, name="Metrics"),
    _page(path="/", handler=pages.home, name="Home", media="", status=307),
    _page(path="/playground", handler=pages.playground, name="Playground"),
    _page(path="/docs", handler=pages.docs, name="Docs"),
    _get(path="/docs.json", handler=_description, name="Description"),
]
