#!/usr/bin/env bash
# The first process of the node, in mount, network and process namespaces of its own: when it
# is killed the kernel takes every process, mount, interface and nftables rule with it.
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"

# As this machine numbers it, for the mounted /proc is still this machine's.
read -r pid _ </proc/self/stat
mount -t proc proc /proc

# The kubelet wants mounts to propagate to containers, which so far are private to the node.
mount --make-rshared /
# Kubernetes, containerd and CNI keep to their usual folders, which are not this machine's.
mkdir -p "$STATE/lib" "$STATE/log"
mount -t tmpfs run /run
mount --bind "$STATE/lib" /var/lib
mount --bind "$STATE/log" /var/log

ip link set lo up
echo "$pid" >"$STATE/node.pid"

# Bash reaps whoever loses its parent; the trap lets nothing but SIGKILL end the node.
trap '' INT HUP TERM
while :; do sleep 1000 & wait; done
