#!/bin/sh
# Run the whole chain on conversations.  Arguments go to `modelmill run`.
set -eu
here=$(dirname "$0")
bin=$here/../../.modelmill/environments/light/bin
"$here/../text-to-sql/prepare.sh"
"$bin/python" "$here/make_data.py" --rows "$here/../text-to-sql/data" --out "$here/data"
exec "$bin/modelmill" run "$here/run.yaml" --profile "$here/../text-to-sql/profile.yaml" \
    --name chat "$@"
