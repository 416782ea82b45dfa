#!/bin/sh
# Compile one lock per environment from pyproject.toml: every platform, hashes, no addresses.
set -eu
cd "$(dirname "$0")/.."
compile() {
    output=$1
    shift
    images/uv.sh pip compile pyproject.toml "$@" --quiet --universal --generate-hashes --python-version 3.11 \
        --custom-compile-command "make locks" --output-file "$output"
}
compile images/light/requirements.lock --extra kubernetes --extra local --extra report
compile images/finetune/requirements.lock --extra finetune --extra merge
compile images/quantize/requirements.lock --extra quantize --extra infer
compile tests/requirements.lock --all-extras --group dev
