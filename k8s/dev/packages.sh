#!/usr/bin/env bash
# Make sure that the programs which are not built are there; install what Debian has.
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"

packages=()
while read -r package program; do
    command -v "$program" >/dev/null || packages+=("$package")
done <<'TABLE'
containerd containerd
runc runc
containernetworking-plugins /usr/lib/cni/ptp
nftables nft
iproute2 ip
openssl openssl
curl curl
util-linux nsenter
procps sysctl
TABLE
[ ${#packages[@]} -eq 0 ] && exit

command -v apt-get >/dev/null ||
    fail "The cluster needs what Debian calls ${packages[*]}; install it, or use kind (k8s/dev/README.md)"
echo "Installing ${packages[*]}" >&2
apt-get install --yes --no-install-recommends "${packages[@]}" >/dev/null ||
    fail "apt-get could not install ${packages[*]}; after apt-get update it may"
