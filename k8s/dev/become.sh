#!/usr/bin/env bash
# Become a component: runs inside the node, notes its PID, writes to the component's log.
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"
exec >>"$STATE/logs/$1.log" 2>&1 </dev/null
echo $$ >"$STATE/pids/$1"
# shellcheck source=/dev/null
. "$DEV/components/$1.sh"
