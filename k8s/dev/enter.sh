#!/usr/bin/env bash
# Run a command inside the node: enter.sh ctr -n k8s.io containers list
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"
in_node "$@"
