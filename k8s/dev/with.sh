#!/usr/bin/env bash
# Run a command with the cluster of `make cluster`, which is started if there is none, and with
# the images that `make images` has built: with.sh COMMAND...
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$DEV/../../pyproject.toml")

eval "$("$DEV/up.sh")"
for image in light finetune merge quantize infer; do
    "$DEV/load-image.sh" "localhost/modelmill-$image:$version"
done
set -a
# shellcheck source=/dev/null
. "$STATE/store.env"
set +a
export MODELMILL_TEST_TAG=$version
exec "$@"
