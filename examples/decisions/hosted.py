"""A stand-in for a hosted decision model: it says which of four topics a sentence of Python's documentation is about.

python hosted.py rows.csv      write its answers to some thousand sentences: text, label
python hosted.py serve 9000    answer POST /v1/decisions on a port, after 100 ms
"""

import csv
import importlib
import inspect
import json
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOPICS = {
    "files": "os shutil pathlib io tempfile zipfile tarfile glob fileinput mmap",
    "network": "socket ssl http.client urllib.request smtplib ftplib imaplib email.message socketserver asyncio",
    "numbers": "math statistics decimal fractions random datetime calendar _pydecimal numbers cmath",
    "text": "re string textwrap difflib json csv html.parser xml.etree.ElementTree configparser argparse",
}
DELAY_S = 0.1


def sentences() -> dict[str, str]:
    """Sentence -> topic of its module."""
    found: dict[str, str] = {}
    for topic, names in TOPICS.items():
        for name in names.split():
            module = importlib.import_module(name)
            own = [part for part in vars(module).values() if getattr(part, "__module__", "") == name]
            for part in [module, *own]:
                members = [part, *(vars(part).values() if inspect.isclass(part) else ())]
                for document in filter(None, map(inspect.getdoc, members)):
                    for sentence in re.split(r"(?<=[.:])\s+(?=[A-Z])|\n\n", document):
                        text = " ".join(sentence.split())
                        if 30 <= len(text) <= 200:
                            found.setdefault(text, topic)
    return found


class Hosted(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    topics = sentences()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(DELAY_S)
        topic = self.topics.get(asked["input"], "text")
        answers = [answer(question, topic) for question in asked["questions"]]
        usage: dict[str, Any] = {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        }
        usage |= {"output_tokens": 0, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 0}
        reply = json.dumps({"model": "hosted", "answers": answers, "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def answer(question: dict[str, Any], topic: str) -> dict[str, Any]:
    values = [choice["value"] for choice in question["choices"]]
    chances = [{"value": value, "probability": float(value == topic)} for value in values]
    name = question.get("name")
    return {"type": "choice", "name": name, "choice": topic, "confidence": 1.0, "probabilities": chances}


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Hosted).serve_forever()
    with open(sys.argv[1], "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *Hosted.topics.items()])
