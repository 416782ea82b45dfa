#!/usr/bin/env bash
# Bring an image that buildah has into the cluster: load-image.sh NAME
# A pod then asks for it as localhost:5001/NAME.  Layers that are there already are not sent.
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"
name=${1:?the name of an image}

command -v buildah >/dev/null || fail "load-image.sh needs buildah: apt-get install buildah"
pid=$(node_pid) || fail "No cluster runs; start one with: make cluster"
# zstd at its lowest level: gzip would take minutes for the layer with torch.
nsenter --target "$pid" --net -- buildah push --quiet --tls-verify=false --format oci \
    --compression-format zstd --compression-level 1 "$name" "localhost:5001/${name#localhost/}"
