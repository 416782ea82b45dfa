#!/bin/sh
# Quantize and judge a model that nothing was done to.  Arguments go to `modelmill run`.
set -eu
here=$(dirname "$0")
"$here/../text-to-sql/prepare.sh"
exec "$here/../../.modelmill/environments/light/bin/modelmill" run "$here/run.yaml" \
    --profile "$here/../text-to-sql/profile.yaml" --name quantize-only "$@"
