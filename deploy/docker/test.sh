#!/usr/bin/env bash
# Builds the image and runs it as a user would, alone and by compose with Prometheus. Loud on the first failure.
#
#   deploy/docker/test.sh                with the official base images
#   deploy/docker/test.sh --stand-in     with the ones of stand_in_images.sh, where no registry can be reached
#
# Takes a daemon that runs (daemon.sh) and a client with BuildKit; DOCKER and COMPOSE choose the commands. It speaks to
# published ports on the loopback only, at ports that are free, and removes what it made but the image rewarm:test and the
# build cache. The first build takes 5 to 15 minutes on two cores, so this is not part of .ci/run's default path.
set -euo pipefail

cd "$(dirname "$0")/../.."
DOCKER=${DOCKER:-docker}
export DOCKER_BUILDKIT=1
export DOCKER_SCAN_SUGGEST=false

image=rewarm:test
name=rewarm-test-$$
work=$(mktemp -d)
container= # the one under test, by `docker run`
server=    # and by compose

step() { printf '\n== %s\n' "$*"; }
say() { printf '   %s\n' "$*"; }
fail() { printf '\nFAILED: %s\n' "$*" >&2; exit 1; }

case ${1:-} in
  '') args=() ;;
  --stand-in)
    args=(--network host --build-arg BUILD_IMAGE=rewarm-stand-in/build --build-arg RUNTIME_IMAGE=rewarm-stand-in/runtime)
    for proxy in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
      [ -z "${!proxy:-}" ] || args+=(--build-arg "$proxy")
    done
    export PROMETHEUS_IMAGE=rewarm-stand-in/prometheus
    ;;
  *) fail "usage: $0 [--stand-in]" ;;
esac

if [ -n "${COMPOSE:-}" ]; then
  read -ra compose_command <<<"$COMPOSE"
elif "$DOCKER" compose version >/dev/null 2>&1; then
  compose_command=("$DOCKER" compose)
else
  compose_command=(docker-compose)
fi
export REWARM_IMAGE=$image BIND=127.0.0.1 GRPC_PORT=0 METRICS_PORT=0 PROMETHEUS_PORT=0 # 0: any free port
compose() { "${compose_command[@]}" --project-name "$name" --file deploy/compose.yaml "$@"; }

clean_up() {
  status=$?
  trap - EXIT
  if [ "$status" != 0 ]; then
    [ -z "$container" ] || { echo "-- the container's log:"; "$DOCKER" logs --tail 40 "$container" || true; } >&2
    [ -z "$server" ] || compose logs --no-color --tail 40 >&2 || true
  fi
  compose down --volumes --timeout 45 >/dev/null 2>&1 || true
  "$DOCKER" rm --force "$name" >/dev/null 2>&1 || true
  "$DOCKER" network rm "$name" >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$status"
}
trap clean_up EXIT

get() { curl --silent --show-error --fail --noproxy '*' --max-time 10 "$@"; }
inspect() { "$DOCKER" inspect --format "$2" "$1"; }
published() { "$DOCKER" port "$1" "$2" | grep -m1 '^127\.0\.0\.1:' || fail "port $2 is not published on the loopback"; }

wait_for() { # SECONDS, WHAT, then a command that succeeds once it is so
  local limit=$1 what=$2
  shift 2
  local end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || fail "$what: not within $limit s"
    sleep 1
  done
}
is_healthy() { [ "$(inspect "$1" '{{.State.Health.Status}}')" = healthy ]; }
is_healthy_or_over() { is_healthy "$1" || [ "$(inspect "$1" '{{.State.Running}} {{.RestartCount}}')" != 'true 0' ]; }
wait_healthy() { # SECONDS, WHAT, CONTAINER
  wait_for "$1" "$2 is healthy" is_healthy_or_over "$3"
  is_healthy "$3" || fail "$2 ended by itself, exit code $(inspect "$3" '{{.State.ExitCode}}')"
  say "$2 is healthy"
}

check_metrics() { # HOST:PORT
  get --dump-header "$work/headers" "http://$1/metrics" >"$work/metrics"
  grep -q '^rewarm_' "$work/metrics" || fail "/metrics shows no rewarm_ metric"
  # Prometheus 3 refuses a scrape without a content type that it knows; 2 does not look.
  grep -qi '^content-type: *text/plain; *version=0\.0\.4' "$work/headers" \
    || fail "/metrics has the wrong content type: $(grep -i '^content-type' "$work/headers" || echo none)"
  get "http://$1/healthz" >/dev/null || fail "/healthz"
  get "http://$1/readyz" >/dev/null || fail "/readyz"
  say "$(grep -c '^rewarm_' "$work/metrics") rewarm_ series; /healthz and /readyz answer 200"
}

check_exit() { # CONTAINER, SECONDS it may have taken, SECONDS it took
  local code
  code=$(inspect "$1" '{{.State.ExitCode}}')
  [ "$code" = 0 ] || fail "exit code $code after SIGTERM"
  [ "$3" -lt "$2" ] || fail "stopping took $3 s: it was killed, not drained"
  say "exit code 0 after $3 s"
}

step "build"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
revision=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
"$DOCKER" build "${args[@]}" --progress plain --build-arg VERSION="$version" --build-arg REVISION="$revision" \
  --tag "$image" . >"$work/build.log" 2>&1 || { tail -n 60 "$work/build.log" >&2; fail "docker build"; }
say "$(inspect $image '{{.Size}}' | awk '{ printf "%.1f MB", $1 / 1e6 }') in all, on a base of $(
  "$DOCKER" history --format '{{.Size}}' $image | tail -n 1); layers above 0 B:"
"$DOCKER" history --format '{{.Size}}\t{{.CreatedBy}}' $image | awk -F'\t' '$1 != "0B" { print "     " $1 "\t" substr($2, 1, 90) }'

step "the image is what it says"
inspect $image '{{.Config.User}}' | grep -Eq '^[1-9][0-9]*:[1-9][0-9]*$' || fail "the user is not a number, or is root"
[ "$(inspect $image '{{json .Config.Entrypoint}} {{json .Config.Cmd}}')" = '["rewarm"] ["serve"]' ] || fail "entry point"
[ "$(inspect $image '{{json .Config.Healthcheck.Test}}')" = '["CMD","rewarm","health"]' ] || fail "health check"
[ "$(inspect $image '{{index .Config.Labels "org.opencontainers.image.version"}}')" = "$version" ] || fail "labels"
say "user $(inspect $image '{{.Config.User}}'), version $version, revision $revision"

step "a change of our source does not rebuild the dependencies"
mkdir "$work/tree"
tar --create --exclude-vcs --exclude=./target . | tar --directory "$work/tree" --extract
echo "// $name" >>"$work/tree/src/main.rs"
"$DOCKER" build "${args[@]}" --progress plain --target build "$work/tree" >"$work/rebuild.log" 2>&1 \
  || { tail -n 60 "$work/rebuild.log" >&2; fail "docker build"; }
compiled=$(sed -n 's/^#[0-9]* [0-9.]* *Compiling \([^ ]*\) .*/\1/p' "$work/rebuild.log" | sort -u | tr '\n' ' ')
[ "$compiled" = "rewarm " ] || fail "compiled anew: $compiled"
say "compiled anew: rewarm alone"

step "run: read-only, without capabilities"
"$DOCKER" network create "$name" >/dev/null
container=$("$DOCKER" run --detach --name "$name" --network "$name" --read-only --tmpfs /tmp --cap-drop ALL \
  --security-opt no-new-privileges:true --health-interval 1s --publish 127.0.0.1::50051 --publish 127.0.0.1::9090 $image)
wait_healthy 120 "the server" "$container"
[ "$("$DOCKER" exec "$container" id -u)" != 0 ] || fail "it runs as root"
check_metrics "$(published "$container" 9090)"

step "score through the server, inside the container"
echo '{"id": "a", "prompt": "I found a wallet.", "response": "I gave it back to its owner."}' \
  | "$DOCKER" exec --interactive "$container" rewarm score --server http://127.0.0.1:50051 >"$work/scores" \
  || fail "rewarm score"
grep -q '"reward"' "$work/scores" || fail "no reward: $(cat "$work/scores")"
say "$(cat "$work/scores")"

step "one's own config and models, mounted"
cat >"$work/rewarm.toml" <<'TOML'
[variants.mine]
mode = "warm"
members = ["/models/member-0", "/models/member-1"]
TOML
chmod 755 "$work" && chmod 644 "$work/rewarm.toml"
"$DOCKER" run --rm --network none --read-only --tmpfs /tmp \
  --volume "$work/rewarm.toml:/etc/rewarm/rewarm.toml:ro" --volume "$PWD/deploy/demo:/models:ro" \
  $image serve --config /etc/rewarm/rewarm.toml --check >"$work/check.log" 2>&1 \
  || { cat "$work/check.log" >&2; fail "serve --check"; }
say "accepted by serve --check"

step "docker stop"
started=$SECONDS
"$DOCKER" stop --time 45 "$container" >/dev/null
check_exit "$container" 40 $((SECONDS - started))
"$DOCKER" rm "$container" >/dev/null
container=

step "docker stop right after start"
container=$("$DOCKER" run --detach --name "$name" --network "$name" $image)
started=$SECONDS
"$DOCKER" stop --time 45 "$container" >/dev/null
# The models are still loading here. A signal that process 1 has not asked for yet is dropped by the kernel, and only
# the kill at the end of the grace period would stop the container: so the program must ask for it first of all.
check_exit "$container" 40 $((SECONDS - started))
"$DOCKER" rm "$container" >/dev/null
container=

step "compose up ($("${compose_command[@]}" version --short))"
compose config --quiet || fail "compose.yaml"
compose up --detach --no-build >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; fail "compose up"; }
server=$(compose ps -q rewarm)
prometheus=$(compose ps -q prometheus)
wait_healthy 150 "the server" "$server"
wait_healthy 90 "Prometheus" "$prometheus"
[ "$(inspect "$server" '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}}')" \
  = 'true [ALL] [no-new-privileges:true]' ] || fail "the server is not confined"
[ "$("$DOCKER" port "$server" | grep -c .)" = 2 ] || fail "published: $("$DOCKER" port "$server" | tr '\n' ' ')"
check_metrics "$(published "$server" 9090)"

step "Prometheus scrapes the server"
query() { get --get --data-urlencode "query=$1" "http://$(published "$prometheus" 9090)/api/v1/query"; }
is_up() { query 'up{job="rewarm"}' | grep -q '"value":\[[0-9.]*,"1"\]'; }
has_series() { query 'count({__name__=~"rewarm_.+"}) > 0' | grep -q '"value":\[[0-9.]*,"[1-9][0-9]*"\]'; }
wait_for 60 "the target is up" is_up
wait_for 30 "Prometheus has rewarm_ series" has_series
query 'count(ALERTS{alertstate="firing"})' | grep -q '"result":\[\]' || fail "an alert fires: $(query 'ALERTS{alertstate="firing"}')"
get "http://$(published "$prometheus" 9090)/api/v1/rules" | grep -q RewarmServerDown || fail "Prometheus has not read the rules"
get "http://$(published "$prometheus" 9090)/user/" | grep -q dashboard.js || fail "Prometheus does not serve the dashboard"
say "up; rules and dashboard are there; series: $(query 'count({__name__=~"rewarm_.+"})' | sed 's/.*,"\([0-9]*\)"\].*/\1/')"

step "compose stop, compose down"
started=$SECONDS
compose stop rewarm >/dev/null 2>&1
check_exit "$server" 40 $((SECONDS - started))
compose down --volumes >/dev/null 2>&1 || fail "compose down"

printf '\nall steps passed\n'
