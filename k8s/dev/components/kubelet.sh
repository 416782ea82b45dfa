# shellcheck shell=bash
# failCgroupV1 and failSwapOn: it is somebody's own machine.
cat >"$STATE/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $NODE_ADDRESS
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: $CERTIFICATES/authority.crt}}
authorization: {mode: Webhook}
tlsCertFile: $CERTIFICATES/kubelet.crt
tlsPrivateKeyFile: $CERTIFICATES/kubelet.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$GROUP
failCgroupV1: false
failSwapOn: false
clusterDNS: [$NODE_ADDRESS]
clusterDomain: cluster.local
resolvConf: ""
volumePluginDir: /var/lib/kubelet/volume-plugins
evictionHard: {memory.available: 100Mi, nodefs.available: 1Gi, imagefs.available: 1Gi}
imageGCHighThresholdPercent: 100
# A pod that outgrows its volume is noticed as soon as the kubelet has counted.
volumeStatsAggPeriod: 5s
YAML
exec kubelet \
    --config="$STATE/kubelet.yaml" \
    --kubeconfig="$CERTIFICATES/kubelet.kubeconfig" \
    --hostname-override="$NODE" \
    --node-ip="$NODE_ADDRESS"
