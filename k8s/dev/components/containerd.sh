# shellcheck shell=bash
# Pods are routed one by one (ptp): on a bridge, the answer of a pod behind a service would
# take the short way past the address translation.
mkdir -p "$STATE/cni"
cat >"$STATE/cni/pods.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": false,
   "ipam": {"type": "host-local", "subnet": "$PODS", "routes": [{"dst": "0.0.0.0/0"}]}}]}
JSON
# A layer is kept unpacked only: images of 6 GB would take 9.
cat >"$STATE/containerd.toml" <<TOML
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost:5001/pause:$PAUSE"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$STATE/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
discard_unpacked_layers = true
TOML
exec containerd --config="$STATE/containerd.toml"
