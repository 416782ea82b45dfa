# shellcheck shell=bash
# The names of services, and one for the store.
cat >"$STATE/Corefile" <<COREFILE
. {
    bind $NODE_ADDRESS
    errors
    kubernetes cluster.local in-addr.arpa {
        kubeconfig $CERTIFICATES/admin.kubeconfig
    }
    hosts {
        $NODE_ADDRESS s3.modelmill.test
    }
}
COREFILE
exec coredns -conf "$STATE/Corefile"
