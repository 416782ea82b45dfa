# shellcheck shell=bash
# Pretend GPUs: the node's status says it has them.  A kubelet that starts takes them away.
capacity='{.status.capacity.nvidia\.com/gpu}{"\n"}'
while sleep 0.5; do
    kubectl get node "$NODE" --watch --output "jsonpath=$capacity" | while read -r count; do
        [ "$count" = "$GPUS" ] || kubectl patch node "$NODE" --subresource status --patch \
            "{\"status\": {\"capacity\": {\"nvidia.com/gpu\": \"$GPUS\"}}}"
    done || true
done
