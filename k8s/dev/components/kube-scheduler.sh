# shellcheck shell=bash
exec kube-scheduler \
    --kubeconfig="$CERTIFICATES/kube-scheduler.kubeconfig" \
    --bind-address=127.0.0.1 \
    --leader-elect=false
