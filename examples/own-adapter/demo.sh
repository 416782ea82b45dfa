#!/bin/sh
# Merge, quantize and judge an adapter that was made by hand.  Arguments go to `modelmill run`.
set -eu
here=$(dirname "$0")
environments=$here/../../.modelmill/environments
"$here/../text-to-sql/prepare.sh"
"$environments/train/bin/python" -W ignore "$here/make_adapter.py" --model "$here/../text-to-sql/model" \
    --rows "$here/../text-to-sql/data/train.jsonl" --out "$here/adapter"
exec "$environments/light/bin/modelmill" run "$here/run.yaml" \
    --profile "$here/../text-to-sql/profile.yaml" --name own-adapter "$@"
