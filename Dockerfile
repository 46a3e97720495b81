# rewarm in a container: a Rust build in one stage, a small image with the binary and the demo family in the other.
#
#   docker build -t rewarm .                                       for a CPU
#   docker build -t rewarm:gpu \
#     --build-arg RUNTIME_IMAGE=docker.io/nvidia/cuda:13.0.2-runtime-ubuntu24.04 .      the same program, with CUDA's libraries
#
#   docker run --rm -p 127.0.0.1:50051:50051 rewarm                serves the demo family
#   docker run --rm -p 127.0.0.1:50051:50051 --gpus all rewarm:gpu
#
# `deploy/compose.yaml` runs it beside Prometheus. Needs BuildKit (the default builder since Docker 23; before that set
# DOCKER_BUILDKIT=1). A build needs neither a GPU nor CUDA: the program opens CUDA's libraries when it starts, if they are there.
#
# Any other base images do, as long as the build image has cargo and a C compiler, and the runtime image a C library that
# is not older than the build image's; on a GPU also libcublasLt and libnvrtc, of CUDA 12.8 or later:
#
#   docker build --build-arg BUILD_IMAGE=... --build-arg RUNTIME_IMAGE=... .

ARG BUILD_IMAGE=docker.io/library/rust:1.95-bookworm
ARG RUNTIME_IMAGE=docker.io/library/debian:bookworm-slim

# ---- the build ----

FROM ${BUILD_IMAGE} AS build
ENV CARGO_INCREMENTAL=0
WORKDIR /build

# Dependencies first, and the kernels, against empty sources: a change of our other code does not rebuild this layer.
# Layers rather than cache mounts: a layer also travels with `--cache-to`, and a mount does not.
# Targets of tests and benches are dropped from the manifest, because their files are not here.
# The stub's own outputs are removed, or cargo would take them for newer than the real sources.
COPY Cargo.toml Cargo.lock ./
COPY src/cuda src/cuda
COPY src/kernels src/kernels
RUN sed -i '/^\[\[\(bench\|test\|example\)\]\]/,/^$/d' Cargo.toml \
 && mkdir proto \
 && echo '//! A stub.' > src/lib.rs \
 && printf '//! A stub.\nfn main() {}\n' | tee src/main.rs > proto/build.rs \
 && cargo build --release --locked --bin rewarm \
 && cargo clean --release --locked --package rewarm

# The program carries the demo family.
COPY deploy/demo deploy/demo
COPY proto proto
COPY src src
RUN cargo build --release --locked --bin rewarm

# ---- what runs ----

FROM ${RUNTIME_IMAGE}
# The certificates, for models from a hub: the build image's bundle, which saves a package manager's layer. Your own: mount
# them in its place.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# Where `rewarm serve` without a config looks first for its demo family, and configurations that come with us do.
WORKDIR /opt/rewarm
COPY deploy/demo deploy/demo
COPY LICENSE* ./
COPY --from=build /build/target/release/rewarm /usr/local/bin/rewarm

# A number, not a name, so that an orchestrator can see that it is not root. It owns no file and needs to write none, but
# where models of a hub are kept: `-v models:/models -e HF_HOME=/models`, writable for it. On a GPU, compiled kernels can be kept
# too: `-v cache:/cache -e REWARM_CACHE_DIR=/cache`; else they are compiled at each start, which takes seconds.
USER 10001:10001

# Its default, the container's own loopback, is out of reach from outside.
ENV REWARM_METRICS=0.0.0.0:9090

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
