# shellcheck shell=bash disable=SC2034  # sourced; each script uses a part of it
# What the scripts of this folder share: versions, folders, addresses, and the way into the node.

KUBERNETES=1.34.4
ETCD=3.6.5
HELM=4.3.1
KUEUE=0.19.2
COREDNS=1.14.7
REGISTRY=3.0.0
PAUSE=1

DEV=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Outside the tree: built once per version and machine, whatever the checkout.
CACHE=${MODELMILL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/modelmill}
BINARIES=$CACHE/cluster
# Everything a running cluster writes; `make cluster-down` deletes it.
STATE=${MODELMILL_CLUSTER:-${XDG_STATE_HOME:-$HOME/.local/state}/modelmill/cluster}
WEED=${MODELMILL_WEED:-$DEV/../../.modelmill/environments/light/bin/weed}

# The first half of every address; a cluster that exists keeps its own.
NETWORK=$(cat "$STATE/network" 2>/dev/null || echo "${MODELMILL_CLUSTER_NETWORK:-10.123}")
PODS=$NETWORK.0.0/24
SERVICES=$NETWORK.1.0/24
MACHINE_ADDRESS=$NETWORK.2.1
NODE_ADDRESS=$NETWORK.2.2

NODE=modelmill
GROUP=modelmill-${NETWORK/./-} # in each cgroup hierarchy
LINK=mill-${NETWORK/./-}       # this machine's end of the cable; 15 characters at most
CERTIFICATES=$STATE/certificates
GPUS=${MODELMILL_CLUSTER_GPUS:-1}
BUCKET=modelmill

for folder in kubernetes-$KUBERNETES etcd-$ETCD helm-$HELM coredns-$COREDNS registry-$REGISTRY; do
    PATH=$BINARIES/$folder:$PATH
done
PATH=$PATH:/usr/sbin:/sbin

fail() {
    echo "$*" >&2
    exit 1
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "Waited too long for $what; its log is in $STATE/logs"
        sleep 0.2
    done
}

cgroup_hierarchies() {
    findmnt --noheadings --output TARGET --types cgroup,cgroup2
}

# Join the group by which the cluster is found and stopped, before becoming a part of it.
join_cgroups() {
    local hierarchy
    for hierarchy in $(cgroup_hierarchies); do
        mkdir -p "$hierarchy/$GROUP/node"
        # A group without cores takes no process; the kubelet gives it some.
        echo "$BASHPID" >"$hierarchy/$GROUP/node/cgroup.procs" || true
    done 2>/dev/null
}

# The process that is the node, as this machine numbers it; nothing when there is none.
node_pid() {
    local pid
    pid=$(cat "$STATE/node.pid" 2>/dev/null) && grep -qs "/$GROUP/" "/proc/$pid/cgroup" && echo "$pid"
}

# Run a command inside the node, in an environment that owes nothing to the caller's.
in_node() (
    pid=$(node_pid) || fail "No cluster runs; start one with: make cluster"
    join_cgroups
    exec nsenter --target "$pid" --mount --net --pid -- env --ignore-environment PATH="$PATH" \
        HOME="$STATE" KUBECONFIG="$STATE/kubeconfig" MODELMILL_CLUSTER="$STATE" \
        MODELMILL_CACHE="$CACHE" MODELMILL_WEED="$WEED" MODELMILL_CLUSTER_GPUS="$GPUS" "$@"
)
