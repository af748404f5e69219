# syntax=docker/dockerfile:1
# An image with `vla-rl`, Meta-World, LIBERO and off-screen rendering; no GPU is needed.
#
#   docker build -t vla-rl .                               CPU
#   docker build -t vla-rl:cuda --build-arg TORCH=cuda .   CUDA; run it with --gpus all
#   docker run --rm -v "$PWD/runs:/workspace/runs" vla-rl quickstart --minutes 5
#
# The folder that is mounted must belong to user 1000, or give --user "$(id -u):$(id -g)".
# Not built yet: no machine with a Docker daemon has run this file. See docs/install.md.

# Debian bookworm, because its Mesa still has OSMesa. The digest keeps the image the same.
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS base

# Mesa as scripts/install.py takes it: EGL and OSMesa, each drawing without a display. OpenCV, which comes with
# robosuite, loads GLib.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        libegl1 libgl1 libgl1-mesa-dri libopengl0 libosmesa6 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 1000 --create-home --shell /bin/bash vla

# The NVIDIA runtime brings the driver's CUDA and, for simulators that draw on the GPU, its EGL.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1


# For development, with the checkout mounted (.devcontainer/devcontainer.json): `make setup-dev` fills .venv.
FROM base AS dev

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates git make \
    && rm -rf /var/lib/apt/lists/*
USER vla
CMD ["bash"]


FROM base AS wheel

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m pip wheel --no-deps --wheel-dir /wheels .


FROM base AS run

ARG TORCH=cpu
# As in scripts/install.py
ARG TORCH_VERSION=2.13.0
ARG UV_VERSION=0.13.9
ARG EXTRAS=quickstart,libero,openvla,serve

RUN python -m venv /opt/vla-rl
ENV PATH=/opt/vla-rl/bin:$PATH

# torch comes first, so that nothing that depends on it brings in another build.
# uv knows where the CPU builds lie; the default build for Linux is the one for CUDA.
RUN case "$TORCH" in \
        cpu) python -m pip install "uv==$UV_VERSION" \
            && uv pip install --python /opt/vla-rl/bin/python --no-cache --torch-backend=cpu "torch==$TORCH_VERSION" ;; \
        cuda) python -m pip install "torch==$TORCH_VERSION" ;; \
        *) echo "TORCH must be cpu or cuda, got $TORCH" >&2; exit 2 ;; \
    esac

COPY scripts/constraints.txt /opt/vla-rl/constraints.txt
COPY --from=wheel /wheels /wheels
RUN python -c "import torch; print('torch==' + torch.__version__)" >> /opt/vla-rl/constraints.txt \
    && python -m pip install --prefer-binary -c /opt/vla-rl/constraints.txt "$(ls /wheels/*.whl)[$EXTRAS]"

WORKDIR /workspace
RUN chown vla:vla /workspace
USER vla
# The build ends here if the package does not load, or if nothing can draw.
RUN python -c "from vla_rl.diagnostics import machine; assert machine.find_renderer()"

ENTRYPOINT ["vla-rl"]
CMD ["--help"]
