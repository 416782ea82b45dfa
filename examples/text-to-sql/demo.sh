#!/bin/sh
# Run the whole chain on the example; with --quick the same stages do a tenth of the work.
# Further arguments go to `modelmill run`.
set -eu
here=$(dirname "$0")
name=text-to-sql
if [ "${1-}" = --quick ]; then
    shift
    name=quick
    set -- --set finetune.num_train_epochs=0.2 --set infer.max_new_tokens=8 --set infer.shots=1 \
        --set quantize.0.calibration.tokens=1024 --set quantize.2.calibration.tokens=1024 \
        --set gate.max_worse=10 "$@"
fi
"$here/prepare.sh"
exec "$here/../../.modelmill/environments/light/bin/modelmill" run "$here/run.yaml" \
    --profile "$here/profile.yaml" --name "$name" "$@"
