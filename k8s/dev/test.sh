#!/usr/bin/env bash
# Test runs on the cluster; all of them, or `quick`.  Words are passed on to pytest.
set -euo pipefail
alone=outage others="not outage"
if [ "${1:-}" = quick ]; then
	shift
	alone="" others="not outage and not long"
fi
# Runs mostly wait, so several share the node; those that stop a part of it run alone.
pytest tests/cluster -m "$others" -n 3 "$@"
if [ -n "$alone" ]; then
	pytest tests/cluster -m "$alone" "$@"
fi
