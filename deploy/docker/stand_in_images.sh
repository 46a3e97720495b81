#!/usr/bin/env bash
# Makes stand-ins for the base images of the Dockerfile and of compose.yaml, where no image registry can be reached but
# Debian's packages can. They are for testing the files here, and are not for use.
#
#   rewarm-stand-in/runtime     for debian:bookworm-slim: Debian 12 by debootstrap, with documents and locales left out
#   rewarm-stand-in/build       for rust:1.95-bookworm: that, gcc, and this machine's Rust toolchain and CA certificates
#   rewarm-stand-in/prometheus  for prom/prometheus: Debian's package, which is older (2.42)
#
# Needs root, debootstrap, a Docker daemon (daemon.sh) and a client with BuildKit (set DOCKER to choose one). The images
# are kept by Docker; one that exists is not made again, unless --force is given. `test.sh --stand-in` uses them.
#
# This machine's way to the crate registry is laid into the build image too: its CA certificates and, if there is one, its cargo
# configuration. Proxy variables are passed as build arguments, which Docker keeps out of the image.
set -euo pipefail

DOCKER=${DOCKER:-docker}
export DOCKER_BUILDKIT=1
prefix=rewarm-stand-in
force=${1:-}

fail() { echo "FAILED: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "debootstrap needs root"
command -v debootstrap >/dev/null || fail "debootstrap is not installed"
command -v rustc >/dev/null || fail "no Rust toolchain to lay in"
"$DOCKER" version >/dev/null || fail "no Docker daemon answers: run daemon.sh start"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

wanted() {
  [ "$force" = --force ] && return 0
  "$DOCKER" image inspect "$prefix/$1" >/dev/null 2>&1 || return 0
  echo "== $prefix/$1 is there already"
  return 1
}

proxies=()
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
  [ -z "${!name:-}" ] || proxies+=(--build-arg "$name")
done

build() { # NAME CONTEXT, the Dockerfile on standard input
  "$DOCKER" build --network host "${proxies[@]}" --tag "$prefix/$1" --file - "$2"
}

if wanted runtime; then
  echo "== $prefix/runtime: debootstrap"
  debootstrap --variant=minbase bookworm "$work/root" >"$work/debootstrap.log" 2>&1 \
    || { tail -n 20 "$work/debootstrap.log" >&2; fail "debootstrap"; }
  tar --directory "$work/root" --create --numeric-owner \
    --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./var/log/*' \
    --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/info/*' \
    --exclude='./usr/share/locale/*' --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' . \
    | "$DOCKER" import --change 'CMD ["bash"]' - "$prefix/runtime" >/dev/null
  rm -rf "$work/root"
fi

if wanted build; then
  echo "== $prefix/build: $(rustc --version)"
  context=$work/build
  sysroot=$(rustc --print sysroot)
  # The layout of the official image; no rustup, since there is one toolchain and it is complete.
  toolchain=usr/local/rustup/toolchains/$(basename "$sysroot")
  mkdir -p "$context/$toolchain" "$context/usr/local/cargo/bin" "$context/etc/ssl/certs"
  tar --directory "$sysroot" --create --exclude=./share --exclude=./lib/rustlib/src . \
    | tar --directory "$context/$toolchain" --extract
  for tool in cargo rustc; do ln -s "/$toolchain/bin/$tool" "$context/usr/local/cargo/bin/$tool"; done
  for config in config.toml config; do
    file=${CARGO_HOME:-$HOME/.cargo}/$config
    [ ! -e "$file" ] || cp -L "$file" "$context/usr/local/cargo/config.toml"
  done
  cp -L "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$context/etc/ssl/certs/ca-certificates.crt"
  build build "$context" <<DOCKERFILE
FROM $prefix/runtime
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY . /
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
RUN cargo --version && rustc --version && cc --version
DOCKERFILE
fi

if wanted prometheus; then
  echo "== $prefix/prometheus"
  mkdir "$work/empty"
  # User, entry point and data directory as in the image that it stands in for.
  build prometheus "$work/empty" <<DOCKERFILE
FROM $prefix/runtime
RUN apt-get update && apt-get install -y --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* \
 && mkdir -p /prometheus && chown nobody:nogroup /prometheus
USER nobody
WORKDIR /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
DOCKERFILE
fi

"$DOCKER" image ls --filter "reference=$prefix/*"
