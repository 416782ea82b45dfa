#!/usr/bin/env bash
# Test runs on the cluster.  Words are passed on to pytest.
set -euo pipefail
# Runs mostly wait, so several share the node; those that stop a part of it run alone.
pytest tests/cluster -m "not outage" -n 3 "$@"
pytest tests/cluster -m outage "$@"
