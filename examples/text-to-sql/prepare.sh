#!/bin/sh
# Get the model and make the data; does nothing where both are there already.
set -eu
cd "$(dirname "$0")/../.."
here=examples/text-to-sql
environments=.modelmill/environments
packages=.modelmill/text-to-sql-packages
if ! cmp -s "$here/requirements.lock" "$packages/requirements.lock"; then
    rm -rf "$packages"
    images/uv.sh pip install --quiet --no-deps --require-hashes --target "$packages" \
        --requirements "$here/requirements.lock"
    cp "$here/requirements.lock" "$packages/"
fi
PYTHONPATH=$packages "$environments/train/bin/python" "$here/make_model.py" --out "$here/model"
"$environments/light/bin/python" "$here/make_data.py" --out "$here/data"
