"""What KServe's own Python client gets from a service: run by the Python that has kserve, prints one JSON object.

`python kserve_client.py ask URL MODEL TOKEN TEXT...`
`python kserve_client.py fields`
"""

import asyncio
import json
import sys
from typing import Any

import httpx  # noqa: TID251  # comes with the KServe client
import numpy as np
from kserve import (
    InferenceRESTClient,
    InferInput,
    InferOutput,
    InferRequest,
    RESTConfig,
    V1beta1InferenceService,
    V1beta1InferenceServiceSpec,
    V1beta1PredictorSpec,
)


async def ask(url: str, model: str, token: str, texts: list[str]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0, timeout=30)) as client:

        async def infer(request: InferRequest, **more: Any) -> dict[str, Any]:
            response = await client.infer(url, request, model_name=model, headers=dict(headers), **more)
            return {"id": response.id, **{output.name: plain(output) for output in response.outputs}}

        return {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model_ready": await client.is_model_ready(url, model, headers=headers),
            "other_model_ready": await client.is_model_ready(url, "another", headers=headers),
            "json": await infer(request_of(model, texts, binary=False)),
            "binary": await infer(request_of(model, texts, binary=True)),
            "no_token": await refusal(client.infer(url, request_of(model, texts, binary=False), model_name=model)),
            "no_text": await refusal(infer(request_of(model, texts, binary=False, name="texts"))),
        }


def request_of(model: str, texts: list[str], *, binary: bool, name: str = "text") -> InferRequest:
    tensor = InferInput(name, [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array(texts, dtype=object), binary_data=binary)
    return InferRequest(model, [tensor], request_id="r-1")


def plain(output: InferOutput) -> list[Any]:
    values = output.as_numpy().tolist()
    return [value.decode() if isinstance(value, bytes) else value for value in values]


async def refusal(call: Any) -> list[Any]:
    """The status and the message that the client tells its caller."""
    try:
        await call
    except httpx.HTTPStatusError as error:
        return [error.response.status_code, str(error)]
    return [200, ""]


def fields() -> list[list[str]]:
    """Fields of an InferenceService, of its spec, and of a predictor, as kserve's models know them."""
    levels = (V1beta1InferenceService, V1beta1InferenceServiceSpec, V1beta1PredictorSpec)
    return [sorted(level.attribute_map.values()) for level in levels]


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    result = fields() if what == "fields" else asyncio.run(ask(rest[0], rest[1], rest[2], rest[3:]))
    print(json.dumps(result))
