# shellcheck shell=bash
# The address of kind's registry, so that images have one name in both clusters.
cat >"$STATE/registry.yaml" <<YAML
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: "127.0.0.1:5001"}
YAML
exec registry serve "$STATE/registry.yaml"
