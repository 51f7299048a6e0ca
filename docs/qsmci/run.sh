#!/bin/bash
# What the benchmark runs in the container: the scan in /input, the map into /output.
set -eu
exec python -m precondqsm_bids.qsmci "${1:-/input}" "${2:-/output}"
