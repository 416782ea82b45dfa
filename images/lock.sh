#!/bin/sh
# Compile one lock per environment from pyproject.toml: every platform, hashes, no addresses.
#
# The first lock holds everything at once; what it picks fits everywhere.  The others take their
# versions from it, so that images that share a layer agree on what is in it.
set -eu
cd "$(dirname "$0")/.."
all=tests/requirements.lock
compile() {
    output=$1
    shift
    images/uv.sh pip compile "$@" --quiet --universal --generate-hashes --python-version 3.11 \
        --custom-compile-command "make locks" --output-file "$output"
}
compile $all pyproject.toml --all-extras --group dev
share() {
    output=$1
    shift
    compile "$output" "$@" --constraint $all
}
share images/light/local.lock pyproject.toml --extra local --extra fetch --extra report --extra kubernetes
share images/light/requirements.lock pyproject.toml --extra fetch --extra report --extra kubernetes
share images/torch/requirements.lock pyproject.toml images/torch/requirements.in
for stage in finetune merge quantize infer; do
    share images/$stage/requirements.lock pyproject.toml --extra $stage
done
share images/builder/sources.lock images/builder/sources.in --no-deps
compile images/builder/requirements.lock images/builder/requirements.in
compile images/cml/requirements.lock images/cml/requirements.in
compile tests/auto_gptq/requirements.lock tests/auto_gptq/requirements.in
compile images/infer-vllm/requirements.lock pyproject.toml images/infer-vllm/requirements.in \
    --override images/infer-vllm/overrides.in
