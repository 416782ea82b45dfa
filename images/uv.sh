#!/bin/sh
# Run uv: the one on PATH, or one from the package index, kept in .modelmill/uv.
set -eu
export UV_PYTHON_DOWNLOADS=never
if ! command -v uv >/dev/null; then
    own=$(dirname "$0")/../.modelmill/uv
    [ -x "$own/bin/uv" ] || { python3 -m venv "$own" && "$own/bin/pip" install --quiet uv; }
    exec "$own/bin/uv" "$@"
fi
exec uv "$@"
