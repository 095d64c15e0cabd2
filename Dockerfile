# The service in a container: no torch, no transformers. How to build and run it: docs/how-to/deploy-docker.md.
# `make lock` renews the versions and hashes of what is installed and, where there is Docker, the digest of this image.
ARG BASE=python:3.12-slim

FROM ${BASE} AS builder
# 1 adds the libraries of CUDA and cuDNN, for machines that have the driver and the NVIDIA container toolkit.
ARG CUDA=""
ENV VIRTUAL_ENV=/opt/kdc PATH=/opt/kdc/bin:$PATH
WORKDIR /src
RUN python -m venv "$VIRTUAL_ENV"
COPY . .
# pyproject.toml names onnxruntime-gpu, so that one install serves on both; its CUDA provider is 270 MB that an image
# for the CPU would carry for nothing. Without CUDA this copy of pyproject.toml asks for onnxruntime in its place: then
# nothing is installed to be exchanged, and what kdc's metadata requires is what is there. Never both: they share files.
# Every file that comes from the registry has a hash; kdc itself is built by a setuptools that has one too.
# hadolint ignore=DL3013,DL3042
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "$CUDA" = 1 ]; then lock=cuda; \
    else lock=cpu; sed -i 's/"onnxruntime-gpu>/"onnxruntime>/' pyproject.toml; fi \
    && pip install --require-hashes --only-binary :all: --requirement "deploy/lock/$lock.txt" \
    && pip install --require-hashes --only-binary :all: --requirement deploy/lock/build.txt --target /opt/build \
    && PYTHONPATH=/opt/build pip install --no-deps --no-build-isolation . && pip check

FROM ${BASE}
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin kdc
COPY --from=builder /opt/kdc /opt/kdc
# Nothing is written but below /tmp, so the root filesystem may be read-only and the user may be any.
ENV PATH=/opt/kdc/bin:$PATH \
    BENTOML_HOME=/tmp/bentoml \
    KDC_CACHE=/tmp/kdc \
    BENTOML_DO_NOT_TRACK=true \
    ORT_DISABLE_TELEMETRY=1 \
    KDC_ARTIFACT=model=/artifact
# A number, so that Kubernetes' runAsNonRoot can tell that it is not root.
USER 10001:10001
EXPOSE 3000
STOPSIGNAL SIGTERM
# Not urllib, which would ask the proxy that an http_proxy names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 3000); \
    c.request('GET', '/readyz'); exit(c.getresponse().status != 200)"]
# As the first process it gets SIGTERM itself; options of `docker run` come after: --workers 2, --timeout 5.
ENTRYPOINT ["kdc", "serve", "--host", "0.0.0.0"]
# Last, since a new commit changes them: all layers above stay as they were.
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="kdc" \
      org.opencontainers.image.description="Serves text classifiers that kdc compress made, on ONNX Runtime" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
