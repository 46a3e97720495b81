# rewarm in a container: a Rust build in one stage, a small image with the binary and the demo family in the other.
#
#   docker build -t rewarm .                                       for a CPU
#   docker build -t rewarm:cuda --build-arg FEATURES=cuda \
#     --build-arg CUDA_COMPUTE_CAP=90 .                            for NVIDIA GPUs of that compute capability
#
#   docker run --rm -p 127.0.0.1:50051:50051 rewarm                serves the demo family
#   docker run --rm -p 127.0.0.1:50051:50051 --gpus all rewarm:cuda
#
# `deploy/compose.yaml` runs it beside Prometheus. Needs BuildKit (the default builder since Docker 23; before that set
# DOCKER_BUILDKIT=1): FEATURES picks the stages by name, and only BuildKit leaves the stages that nobody asked for alone.
#
# Any other base images do, as long as the build image has cargo and a C compiler, and the runtime image a C library that
# is not older than the build image's:
#
#   docker build --build-arg BUILD_IMAGE=... --build-arg RUNTIME_IMAGE=... .

ARG FEATURES=""
ARG BUILD_IMAGE=docker.io/library/rust:1.95-bookworm
ARG RUNTIME_IMAGE=docker.io/library/debian:bookworm-slim
ARG CUDA_BUILD_IMAGE=docker.io/nvidia/cuda:13.0.2-devel-ubuntu24.04
ARG CUDA_RUNTIME_IMAGE=docker.io/nvidia/cuda:13.0.2-runtime-ubuntu24.04

# ---- what to build with: toolchain-cpu, or toolchain-cuda when FEATURES is "cuda" ----

FROM ${BUILD_IMAGE} AS toolchain-cpu

FROM ${CUDA_BUILD_IMAGE} AS toolchain-cuda
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:${PATH}
COPY --from=toolchain-cpu /usr/local/rustup /usr/local/rustup
COPY --from=toolchain-cpu /usr/local/cargo /usr/local/cargo
# No GPU is there while an image is built, so the architecture must be said: 80 = A100, 89 = L4 and RTX 40, 90 = H100.
ARG CUDA_COMPUTE_CAP=80
ENV CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP}
# libcudart for the kernels; the stub of libcuda.so.1, which belongs to the driver and comes with `--gpus`.
ENV LIBRARY_PATH=/usr/local/cuda/lib64:/usr/local/cuda/lib64/stubs

# ---- the build ----

FROM toolchain-${FEATURES:-cpu} AS build
ARG FEATURES
ENV CARGO_INCREMENTAL=0
WORKDIR /build

# Dependencies first, and the kernels, against empty sources: a change of our other code does not rebuild this layer.
# Layers rather than cache mounts: a layer also travels with `--cache-to`, and a mount does not.
# Targets of tests and benches are dropped from the manifest, because their files are not here.
# The stub's own outputs are removed, or cargo would take them for newer than the real sources.
COPY Cargo.toml Cargo.lock ./
COPY src/kernels src/kernels
RUN sed -i '/^\[\[\(bench\|test\|example\)\]\]/,/^$/d' Cargo.toml \
 && mkdir proto \
 && echo '//! A stub.' > src/lib.rs \
 && printf '//! A stub.\nfn main() {}\n' | tee src/main.rs > proto/build.rs \
 && cargo build --release --locked --bin rewarm --features "${FEATURES}" \
 && cargo clean --release --locked --package rewarm

COPY proto proto
COPY src src
RUN cargo build --release --locked --bin rewarm --features "${FEATURES}"

# ---- what runs ----

FROM ${RUNTIME_IMAGE} AS runtime-cpu
FROM ${CUDA_RUNTIME_IMAGE} AS runtime-cuda

FROM runtime-${FEATURES:-cpu}
# The certificates, for models from a hub: the build image's bundle, which saves a package manager's layer. Your own: mount
# them in its place.
COPY --from=toolchain-cpu /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# `rewarm serve` without a config looks for its demo family in deploy/demo.
WORKDIR /opt/rewarm
COPY deploy/demo deploy/demo
COPY LICENSE* ./
COPY --from=build /build/target/release/rewarm /usr/local/bin/rewarm

# A number, not a name, so that an orchestrator can see that it is not root. It owns no file and needs to write none, but
# where models of a hub are kept: `-v models:/models -e HF_HOME=/models`, writable for it.
USER 10001:10001

# gRPC; metrics, healthz and readyz. The admin port (50052) listens on the container's own loopback only.
EXPOSE 50051 9090

# Ready, not merely alive: the server answers SERVING once its models are loaded and warm. Failures within the start period
# do not count; give large models more (`--health-start-period`).
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["rewarm", "health"]

# SIGTERM drains: finishes what was admitted, then exits 0. Let `docker stop --time` exceed the drain limit (30 s).
STOPSIGNAL SIGTERM
ENTRYPOINT ["rewarm"]
CMD ["serve"]

ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="rewarm" \
      org.opencontainers.image.description="A gRPC reward-scoring server for RL trainers: weight-averaged reward models (WARM) and ensembles (ENS)" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
