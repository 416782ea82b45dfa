#!/usr/bin/env bash
# Test runs on the cluster of `make cluster`, which it starts if there is none, with the images
# that `make images` has built.  Words are passed on to pytest.  Needs an hour of two cores at
# most, and no other cluster: everything a test leaves behind is in a namespace of its own.
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"
cd "$DEV/../.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)

eval "$("$DEV/up.sh")"
for image in light finetune merge quantize infer; do
    "$DEV/load-image.sh" "localhost/modelmill-$image:$version"
done
set -a
# shellcheck source=/dev/null
. "$STATE/store.env"
set +a
export MODELMILL_TEST_TAG=$version
# Runs mostly wait, so several share the node; those that stop a part of it run alone.
.venv/bin/pytest tests/cluster -m "not outage" -n 3 "$@"
.venv/bin/pytest tests/cluster -m outage "$@"
