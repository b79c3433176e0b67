# `make demo` in a container, on the CPU:
#
#   docker build --tag map --build-arg PYTORCH_INDEX=ADDRESS .      the index of PyTorch's CPU builds (README.md); without it, 4 GB of CUDA come along
#   docker run --rm --volume "$PWD/demo:/home/map/project/runs" map      the report is left in demo/, which user 1000 must be able to write
#
# Linted with hadolint 2.15.1, not built yet.
FROM python:3.11-slim-bookworm

# the native kernels are compiled when map-core is installed
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 1000 --create-home map \
    && install --directory --owner map /home/map/project /home/map/project/runs
USER 1000
WORKDIR /home/map/project
ENV PIP_NO_CACHE_DIR=1 \
    OMP_NUM_THREADS=1

COPY --chown=map Makefile constraints.txt ./
COPY --chown=map packages/VERSION packages/VERSION
COPY --chown=map packages/map-core packages/map-core
COPY --chown=map packages/map-vision packages/map-vision

# the index serves torch and torchvision alone; their dependencies, and all else, come from where pip looks by itself
ARG PYTORCH_INDEX=""
RUN python -m venv .venv \
    && if [ -n "$PYTORCH_INDEX" ]; then \
        .venv/bin/python -m pip install --no-deps --constraint constraints.txt --index-url "$PYTORCH_INDEX" torch torchvision; \
    fi \
    && make .venv/demo.stamp

CMD ["make", "demo"]
