# shellcheck shell=bash
# Nothing here outlives the cluster, so nothing is synced to disk.
exec etcd --name="$NODE" --data-dir=/var/lib/etcd --unsafe-no-fsync --log-level=warn
