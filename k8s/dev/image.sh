#!/usr/bin/env bash
# Put one static binary into the node's containerd as an image: image.sh NAME:TAG BINARY PATH
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"
name=$1 binary=$2 path=$3
case $(uname -m) in aarch64) architecture=arm64 ;; *) architecture=amd64 ;; esac

work=$(mktemp -d "$STATE/image.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
install -D "$binary" "root$path"
tar --create --file layer.tar --directory root --owner 0 --group 0 .
cat >config.json <<JSON
{"os": "linux", "architecture": "$architecture",
 "config": {"User": "65532:65532", "Entrypoint": ["$path"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sha256sum layer.tar | cut -d' ' -f1)"]}}
JSON
cat >manifest.json <<JSON
[{"Config": "config.json", "RepoTags": ["localhost:5001/$name"], "Layers": ["layer.tar"]}]
JSON
tar --create --file image.tar manifest.json config.json layer.tar
wait_for 30 containerd in_node ctr version
in_node ctr --namespace k8s.io images import "$work/image.tar" >/dev/null
