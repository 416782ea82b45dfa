#!/usr/bin/env bash
# Control one component of the cluster, as tests of failures need it.
#   component.sh start|stop|pause|continue|logs|running NAME
#   component.sh list
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"

main() {
    local verb=${1-} name=${2-}
    [ "$verb" = list ] && exec ls "$STATE/pids"
    [ -n "$name" ] || fail "component.sh start|stop|pause|continue|logs|running NAME, or list"
    [ -f "$DEV/components/$name.sh" ] ||
        fail "There is no component '$name'; see: ls $DEV/components"
    case $verb in
        start) start "$name" ;;
        stop) stop "$name" ;;
        pause) signal STOP "$name" ;;
        continue) signal CONT "$name" ;;
        logs) exec cat "$STATE/logs/$name.log" ;;
        running) running "$name" ;;
        *) fail "A component has no '$verb'; it has start, stop, pause, continue, logs and running" ;;
    esac
}

signal() { # signal SIGNAL NAME; the PID is the node's, not this machine's
    in_node kill "-$1" "$(cat "$STATE/pids/$2")"
}

running() {
    [ -f "$STATE/pids/$1" ] && signal 0 "$1" 2>/dev/null
}

start() {
    running "$1" && return
    rm -f "$STATE/pids/$1"
    in_node setsid --fork "$DEV/become.sh" "$1"
    wait_for 10 "$1" test -s "$STATE/pids/$1"
}

stop() { # at once, as in a crash: the API server would take a minute to say goodbye
    running "$1" || return 0
    signal KILL "$1"
    while running "$1"; do sleep 0.05; done
}

main "$@"
