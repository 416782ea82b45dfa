# shellcheck shell=bash
# Connection tracking has no limits of its own in a network namespace, so none are set.
cat >"$STATE/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: $NODE
clusterCIDR: $PODS
clientConnection: {kubeconfig: $CERTIFICATES/kube-proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
exec kube-proxy --config="$STATE/kube-proxy.yaml"
