#!/usr/bin/env bash
# Stop the cluster and remove all it has made, however far it had come; built programs stay.
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"

main() {
    [ "$(id -u)" = 0 ] || fail "The cluster runs as root; so must what stops it"
    kill_processes
    remove_cgroups
    # Goes with the node's network namespace, but not at once.
    ip link delete "$LINK" 2>/dev/null || true
    if [ -f "$STATE/network" ]; then
        sysctl --quiet --load "$STATE/sysctl.conf" 2>/dev/null || true
        # Its mark goes last: what is left when this is killed is still known as a cluster's.
        find "$STATE" -mindepth 1 -maxdepth 1 ! -name network -exec rm -rf --one-file-system {} +
        rm -rf --one-file-system "$STATE"
    fi
    rmdir "$STATE" 2>/dev/null || true # killed right after its start
    MODELMILL_CLUSTER_NETWORK=$NETWORK "$DEV/leftovers.sh"
}

group_processes() {
    # A process that ends meanwhile makes grep fail.
    { grep -lsE ":/$GROUP(/|\$)" /proc/[0-9]*/cgroup || true; } | cut -d/ -f3
}

kill_processes() {
    local pids
    for _ in {1..100}; do
        pids=$(group_processes)
        [ -n "$pids" ] || return 0
        # Some are gone by now; those that were being started are found the next time.
        # shellcheck disable=SC2086
        kill -KILL $pids 2>/dev/null || true
        sleep 0.1
    done
    fail "These processes do not end: ${pids//$'\n'/ }"
}

remove_cgroups() {
    local hierarchy
    for hierarchy in $(cgroup_hierarchies); do
        [ -d "$hierarchy/$GROUP" ] && find "$hierarchy/$GROUP" -depth -type d -exec rmdir {} +
    done
    return 0
}

main
