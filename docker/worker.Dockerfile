# A worker with the small model of this repository, which any other checkpoint may replace (CELADON_MODEL).
# Build from the repository's root. For CPUs, with OpenVINO and without torch:
#   docker build -f docker/worker.Dockerfile -t celadon-worker .
# For GPUs, with torch: the same with --build-arg EXTRA=gpu -t celadon-worker-gpu
FROM python:3.11-slim AS build
ARG EXTRA=cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/celadon
ENV PATH=/opt/celadon/bin:$PATH
COPY constraints.txt ./
# torch first and alone: its layer is large and seldom changes.
RUN if [ "$EXTRA" = gpu ]; then pip install --constraint constraints.txt torch; fi
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY jobs jobs
COPY pipelines pipelines
COPY workers workers
COPY training training
COPY celadon celadon
RUN pip install --constraint constraints.txt ".[$EXTRA,s3,otel]"

# The same slim base for CPU and GPU: torch's wheels bring the CUDA libraries, the host brings the driver.
FROM python:3.11-slim
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin celadon \
    && install --directory --owner 10001 --group 10001 /data
COPY --from=build /opt/celadon /opt/celadon
COPY models /models
ENV PATH=/opt/celadon/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CELADON_DATA_DIR=/data \
    CELADON_MODEL=/models/celadon-mini
USER 10001:10001
VOLUME /data
# Healthy is a worker that tells of itself: its entry in the registry lives 15 s without a heartbeat.
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s CMD ["celadon", "doctor", "--worker"]
# SIGTERM finishes or releases the jobs under way; give it longer than CELADON_DRAIN_S.
STOPSIGNAL SIGTERM
CMD ["celadon", "worker"]
