#!/bin/bash
# Build the container image from the source as it is here.
#
#   scripts/build_image.sh [IMAGE] [DOCKER_BUILD_OPTION...]       precondqsm_bids by default
#
# It is tagged IMAGE:VERSION and IMAGE:latest. The base is BASE_IMAGE (and RUNTIME_IMAGE) if set;
# else the official Python image, if it is here or can be pulled; else one that
# scripts/make_base_image.sh makes of Debian packages.
set -euo pipefail
cd "$(dirname "$0")/.."

image=${1:-precondqsm_bids}
[ $# -gt 0 ] && shift
official=python:3.11-slim-bookworm
local_base=precondqsm_bids-base

here() { docker image inspect "$1" >/dev/null 2>&1; }

if ! docker version >/dev/null; then
    echo "build_image: no Docker Engine answers, see above" >&2
    exit 1
fi

arguments=()
if [ -n "${BASE_IMAGE:-}" ]; then
    arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
    arguments+=(--build-arg "RUNTIME_IMAGE=${RUNTIME_IMAGE:-$BASE_IMAGE}")
elif here "$official" || { ! here "$local_base:runtime" &&
    timeout 120 docker pull --quiet "$official" 2>/dev/null; }; then
    arguments+=(--build-arg "BASE_IMAGE=$official")
else
    if ! here "$local_base:build" || ! here "$local_base:runtime"; then
        echo "No image registry within reach: making the base image of Debian packages."
        scripts/make_base_image.sh "$local_base"
    fi
    arguments+=(--build-arg "BASE_IMAGE=$local_base:build")
    arguments+=(--build-arg "RUNTIME_IMAGE=$local_base:runtime")
    # The local base has the host's certificates; another one may lack the file.
    arguments+=(--build-arg PIP_CERT=/etc/ssl/certs/ca-certificates.crt)
fi

# Where this host finds packages the build finds them, too. None of it stays in the image.
for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy \
    PIP_DEFAULT_TIMEOUT PIP_ARGS; do
    [ -n "${!name:-}" ] && arguments+=(--build-arg "$name")
done
for key in index-url extra-index-url trusted-host; do
    name=PIP_$(tr a-z- A-Z_ <<<"$key")
    value=${!name:-$(python3 -m pip config get "global.$key" 2>/dev/null || true)}
    [ -n "$value" ] && arguments+=(--build-arg "$name=$value")
done

version=$(sed -n "s/^__version__ = '\(.*\)'/\1/p" precondqsm_bids/__init__.py)
revision=$(git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown)
docker build "${arguments[@]}" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
    --tag "$image:$version" --tag "$image:latest" "$@" .
echo "$image:$version" "$(docker image inspect --format '{{.Size}}' "$image:$version" |
    awk '{printf "%.0f MB", $1 / 1e6}')"
