"""The app and batcher of `kdc serve` without BentoML around them: as fast as this app can be over HTTP.

Reads `KDC_*`; takes the port as its argument.
"""

import sys

import uvicorn

from kdc.serving.http.api.app import make_app
from kdc.serving.http.settings import resolve

if __name__ == "__main__":
    uvicorn.run(
        make_app(resolve()),
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
