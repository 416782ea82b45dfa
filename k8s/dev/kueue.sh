#!/usr/bin/env bash
# Install Kueue from its own chart, with the binary that was built from the same source.
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"

"$DEV/image.sh" "kueue:$KUEUE" "$BINARIES/kueue-$KUEUE/kueue" /manager
# What the chart asks for, 500m and 512Mi, is a quarter of a small machine.
in_node helm upgrade --install kueue "$BINARIES/kueue-$KUEUE/chart" \
    --namespace kueue-system --create-namespace \
    --set controllerManager.manager.image.repository=localhost:5001/kueue \
    --set controllerManager.manager.image.tag="$KUEUE" \
    --set controllerManager.manager.image.pullPolicy=Never \
    --set controllerManager.manager.resources.requests.cpu=50m \
    --set controllerManager.manager.resources.requests.memory=128Mi >"$STATE/logs/kueue-install.log" 2>&1
in_node kubectl --namespace kueue-system rollout status deployment --timeout 120s >/dev/null
