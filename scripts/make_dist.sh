#!/bin/bash
# Build wheel and source archive in dist/, check them as a package index would, install the wheel with
# all that it needs in a fresh environment, and run it there on a phantom.
#
#   scripts/make_dist.sh [PIP_INSTALL_OPTION...]       VENV (.venv by default) has the tools
#
# The source is that of Git: what is not committed or not added is not in it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${VENV:-.venv}")/bin/python
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

mkdir "$fresh/source"
git archive HEAD | tar -x -C "$fresh/source"
rm -rf dist && mkdir dist
out=$PWD/dist
for kind in sdist wheel; do
    (cd "$fresh/source" && "$python" -c \
        'import sys; from setuptools import build_meta as b; getattr(b, "build_" + sys.argv[1])(sys.argv[2])' \
        "$kind" "$out" >"$fresh/$kind.log" 2>&1) || { cat "$fresh/$kind.log" >&2; exit 1; }
done
"$python" -m twine check --strict dist/*

"$python" -m venv "$fresh/venv"
"$fresh/venv/bin/pip" install --quiet --disable-pip-version-check "$@" dist/*.whl
"$fresh/venv/bin/pip" check
cd "$fresh"
venv/bin/precondqsm_bids --version
venv/bin/precondqsm_phantom raw --matrix 26 26 24 --voxel-size 3 3 3 --object-scale 0.6 \
    --echo-times 0.0014 0.0042 0.007
venv/bin/precondqsm_bids raw out participant --work-dir work --dry-run
echo "$(cd "$out" && ls)"
