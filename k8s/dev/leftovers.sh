#!/usr/bin/env bash
# List what a cluster has left, or still has, on this machine; fail if there is anything.
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"

find_leftovers() {
    grep -lsE ":/$GROUP(/|\$)" /proc/[0-9]*/cgroup | sed 's,.*/\([0-9]*\)/.*,process \1,'
    awk -v folder="$STATE" 'index($0, folder) { print "mount " $5 }' /proc/self/mountinfo
    ip -oneline link show "$LINK" 2>/dev/null | sed 's/^/interface /'
    ip route show table all | sed -n "/$NETWORK\\./s/^/route /p"
    nft list ruleset 2>/dev/null | sed -n "/$NETWORK\\./s/^/nftables rule /p"
    cgroup_hierarchies | while read -r hierarchy; do
        find "$hierarchy/$GROUP" -maxdepth 0 2>/dev/null | sed 's/^/cgroup /'
    done
    grep -rlsF "$NETWORK." /var/lib/cni /etc/cni | sed 's/^/CNI state /'
    find "$STATE" -maxdepth 0 2>/dev/null | sed 's/^/folder /'
    true
}

leftovers=$(find_leftovers || true)
[ -z "$leftovers" ] && exit
echo "$leftovers"
exit 1
