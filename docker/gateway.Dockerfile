# The HTTP gateway: no torch, no weights. Build from the repository's root:
#   docker build -f docker/gateway.Dockerfile -t celadon-gateway .
FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/celadon
ENV PATH=/opt/celadon/bin:$PATH
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service service
COPY jobs jobs
COPY pipelines pipelines
COPY workers workers
COPY training training
COPY celadon celadon
RUN pip install --constraint constraints.txt ".[s3,otel]"

FROM python:3.11-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin celadon \
    && install --directory --owner 10001 --group 10001 /data
COPY --from=build /opt/celadon /opt/celadon
ENV PATH=/opt/celadon/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CELADON_HOST=0.0.0.0 \
    CELADON_PORT=7860 \
    CELADON_DATA_DIR=/data
USER 10001:10001
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["celadon", "gateway"]
