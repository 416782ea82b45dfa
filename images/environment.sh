#!/bin/sh
# Make one local environment from the lock that its image ships, or that only tests need.
#   images/environment.sh light|train|quantize|dev|auto-gptq FOLDER
set -eu
cd "$(dirname "$0")/.."
name=$1 folder=$2
case $name in
    light) lock=images/light/local.lock ;;
    train) lock=images/finetune/requirements.lock ;;
    quantize) lock=images/quantize/requirements.lock ;;
    dev) lock=tests/requirements.lock ;;
    auto-gptq) lock=tests/auto_gptq/requirements.lock ;;
    *) echo "There is no environment '$name'; known: light, train, quantize, dev, auto-gptq" >&2; exit 64 ;;
esac
digest=$(cat "$lock" pyproject.toml | sha256sum)
[ "$(cat "$folder/.made-from" 2>/dev/null)" = "$digest" ] && exit 0
echo "Making the $name environment from $lock" >&2
[ -x "$folder/bin/python" ] || images/uv.sh venv --quiet --no-project --python 3 "$folder"
# Compiled now, with all cores: at its first import each library would be compiled by one.
images/uv.sh pip sync --quiet --compile-bytecode \
    --python "$folder/bin/python" --require-hashes "$lock"
images/uv.sh pip install --quiet --python "$folder/bin/python" --no-deps --editable .
echo "$digest" > "$folder/.made-from"
