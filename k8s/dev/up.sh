#!/usr/bin/env bash
# Start a one-node Kubernetes on this machine, or say that it runs.
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"

main() {
    check
    if [ -f "$STATE/ready" ] && node_pid >/dev/null; then
        echo "The cluster runs already" >&2
    else
        "$DEV/packages.sh"
        "$DEV/build.sh"
        "$DEV/down.sh"
        trap explain EXIT
        start_node
        start_components
        "$DEV/kueue.sh"
        touch "$STATE/ready"
    fi
    echo "export PATH=$BINARIES/kubernetes-$KUBERNETES:$BINARIES/helm-$HELM:\$PATH"
    echo "export KUBECONFIG=$STATE/kubeconfig"
}

explain() {
    [ -f "$STATE/ready" ] ||
        echo "The cluster did not start; its logs are in $STATE/logs.  Clean up: make cluster-down" >&2
}

check() {
    [ "$(id -u)" = 0 ] || fail "The cluster needs root, for namespaces, mounts and interfaces; without it use kind (k8s/dev/README.md)"
    [ -x "$WEED" ] || fail "There is no SeaweedFS at $WEED; make it with: make environments"
    case $STATE/ in
        /run/* | /var/lib/* | /var/log/*) fail "The node has its own /run, /var/lib and /var/log, so $STATE would be hidden; set MODELMILL_CLUSTER" ;;
    esac
    # Stopping deletes the folder.
    [ -z "$(ls "$STATE" 2>/dev/null)" ] || [ -f "$STATE/network" ] ||
        fail "$STATE holds something else; set MODELMILL_CLUSTER to an empty folder"
}

start_node() {
    ! ip route show table all | grep -q "^$NETWORK\." ||
        fail "The network $NETWORK.0.0/16 is in use here; set MODELMILL_CLUSTER_NETWORK, for example to 10.124"
    mkdir -p "$STATE"
    echo "$NETWORK" >"$STATE/network"
    mkdir "$STATE"/{pids,logs}
    # The kubelet sets some of these, and they are this machine's.
    sysctl --ignore kernel.panic kernel.panic_on_oops vm.overcommit_memory vm.panic_on_oom \
        kernel.keys.root_maxkeys kernel.keys.root_maxbytes >"$STATE/sysctl.conf"

    (
        join_cgroups
        exec setsid unshare --fork --pid --mount --net "$DEV/node.sh" \
            >"$STATE/logs/node.log" 2>&1 </dev/null
    ) &
    wait_for 10 "the node" test -s "$STATE/node.pid"

    # One cable between this machine and the node, as to a machine next to it.
    ip link add "$LINK" type veth peer name eth0 netns "$(node_pid)"
    ip address add "$MACHINE_ADDRESS/24" dev "$LINK"
    ip link set "$LINK" up
    in_node ip address add "$NODE_ADDRESS/24" dev eth0
    in_node ip link set eth0 up
    in_node ip route add default via "$MACHINE_ADDRESS"
    ip route add "$PODS" via "$NODE_ADDRESS"
    ip route add "$SERVICES" via "$NODE_ADDRESS"
}

start_components() {
    local name
    "$DEV/certificates.sh"
    write_store_access
    for name in etcd containerd registry seaweedfs kube-apiserver; do
        "$DEV/component.sh" start "$name"
    done
    "$DEV/image.sh" "pause:$PAUSE" "$BINARIES/pause-$PAUSE/pause" /pause
    wait_for 60 "the API server" in_node kubectl get --raw /readyz
    for name in kube-controller-manager kube-scheduler kubelet kube-proxy coredns gpu; do
        "$DEV/component.sh" start "$name"
    done
    wait_for 60 "the S3 store" make_bucket
    wait_for 60 "the node to be ready" in_node kubectl wait --for condition=Ready "node/$NODE" --timeout 1s
}

write_store_access() (
    umask 077
    access=$(openssl rand -hex 16) secret=$(openssl rand -hex 32)
    cat >"$STATE/identities.json" <<JSON
{"identities": [{"name": "modelmill", "actions": ["Admin"],
  "credentials": [{"accessKey": "$access", "secretKey": "$secret"}]}]}
JSON
    cat >"$STATE/store.env" <<ENV
MODELMILL_STORE=s3://$BUCKET
AWS_ENDPOINT_URL=http://$NODE_ADDRESS:8333
AWS_ACCESS_KEY_ID=$access
AWS_SECRET_ACCESS_KEY=$secret
AWS_REGION=us-east-1
ENV
)

make_bucket() (
    # shellcheck source=/dev/null
    . "$STATE/store.env"
    curl --fail --silent --noproxy '*' --request PUT --aws-sigv4 aws:amz:us-east-1:s3 \
        --config - "$AWS_ENDPOINT_URL/$BUCKET" <<<"user = \"$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY\""
)

main
