#!/bin/sh
# Put what a lock names into the image's Python, and list what is then in it.
#   install.sh LOCK [WHEEL...]     wheels that no index has; the lock knows their sources
# VENV         of another Python than the one stages run with
set -eu
lock=$1
shift
venv=${VENV:-/opt/modelmill/venv}
python=$venv/bin/python
# Secrets of the build: the site's CA, and uv.toml with the address of the site's index.
[ ! -e /run/secrets/ca ] || export SSL_CERT_FILE=/run/secrets/ca
[ ! -e /run/secrets/uv ] || export UV_CONFIG_FILE=/run/secrets/uv
# Bytecode belongs in the layer: nobody can write it later, and without it every start of a
# stage compiles torch and transformers anew, 12 s.
export UV_CACHE_DIR=/var/cache/uv UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_PROGRESS=1

install() {
    /opt/builder/venv/bin/uv pip install --python "$python" --no-deps "$@"
}

[ $# -eq 0 ] || install --offline "$@"
# Nothing is built here: what the builder has no wheel for fails.
install --require-hashes --only-binary :all: --requirement "$lock"
rm -f "$venv/.lock" # uv's, and anybody may write to it
"$python" /opt/builder/sbom.py "$lock" > "$(dirname "$lock")/sbom.cdx.json"
