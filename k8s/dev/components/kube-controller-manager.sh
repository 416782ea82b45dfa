# shellcheck shell=bash
exec kube-controller-manager \
    --kubeconfig="$CERTIFICATES/kube-controller-manager.kubeconfig" \
    --bind-address=127.0.0.1 \
    --leader-elect=false \
    --use-service-account-credentials \
    --root-ca-file="$CERTIFICATES/authority.crt" \
    --service-account-private-key-file="$CERTIFICATES/service-accounts.key"
