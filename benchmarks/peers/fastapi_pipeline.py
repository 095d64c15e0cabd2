"""The usual first attempt: FastAPI around a transformers pipeline. `POST /predict {"inputs": [...]}`.

Reads `PEER_MODEL`; takes the port as argument. Needs requirements.txt.
"""

import os
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Question(BaseModel):
    """Texts, or pairs as {"text": ..., "text_pair": ...}."""

    inputs: list[str] | list[dict[str, str]]


app = FastAPI()
classify = pipeline("text-classification", model=os.environ["PEER_MODEL"], device="cpu", top_k=None)


@app.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/predict")
def predict(question: Question) -> Any:
    return classify(question.inputs, batch_size=32, truncation=True)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), access_log=False, log_level="warning")
