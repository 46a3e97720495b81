#!/usr/bin/env bash
# Starts or stops a Docker daemon by hand, as root, on a machine with no service manager.
#
#   deploy/docker/daemon.sh start | stop
#
# It leaves the machine's firewall, forwarding and bridges alone (no --iptables, no default bridge): images are built on
# the host's network, containers reach each other on networks that compose or test.sh makes, and published ports go
# through Docker's own proxy process. A daemon that already answers is used as it is, and never stopped.
set -euo pipefail

DOCKER=${DOCKER:-docker}
state=/run/rewarm-dockerd
pid_file=$state/pid
log=$state/log

answers() { "$DOCKER" version >/dev/null 2>&1; }

start() {
  if answers; then
    echo "a Docker daemon answers already"
    return
  fi
  mkdir -p "$state"
  setsid nohup dockerd --iptables=false --ip6tables=false --ip-forward=false --bridge=none >"$log" 2>&1 </dev/null &
  echo $! >"$pid_file"
  for _ in $(seq 60); do
    if answers; then
      echo "dockerd runs (pid $(cat "$pid_file"), log $log)"
      return
    fi
    kill -0 "$(cat "$pid_file")" 2>/dev/null || break
    sleep 1
  done
  tail -n 20 "$log" >&2
  echo "FAILED: dockerd does not answer" >&2
  exit 1
}

stop() {
  if [ ! -e "$pid_file" ]; then
    echo "no daemon was started here"
    return
  fi
  pid=$(cat "$pid_file")
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 60); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 1
  done
  rm -f "$pid_file"
  echo "dockerd stopped"
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  *)
    echo "usage: $0 start | stop" >&2
    exit 2
    ;;
esac
