#!/bin/bash
# Make the two Debian base images of the Dockerfile where no container registry can be reached:
# NAME:build (python3 and venv, which brings pip) and NAME:runtime (python3 alone, no documentation).
#
#   scripts/make_base_image.sh [NAME]       NAME is precondqsm_bids-base by default
#
# SUITE (bookworm) and MIRROR (mmdebstrap's own choice) are taken from the environment.
# The host's certificates go into the first: behind a proxy that signs for itself pip would trust
# nothing else. The second is what is shipped, and is free of this host's traces. Addresses of
# package indexes are in neither: they are build arguments.
set -euo pipefail

name=${1:-precondqsm_bids-base}
suite=${SUITE:-bookworm}
mirror=${MIRROR:-}
certificates=/etc/ssl/certs/ca-certificates.crt

if ! command -v docker >/dev/null; then
    echo "make_base_image: no docker command here; install Docker Engine first" >&2
    exit 1
fi
if ! command -v mmdebstrap >/dev/null; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "make_base_image: mmdebstrap is missing; install it (Debian, Ubuntu: 'apt-get" \
            "install mmdebstrap') or give an image of your own: make image BASE_IMAGE=NAME" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap \
        >/dev/null
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# make_image TAG PACKAGES MMDEBSTRAP_OPTION...
make_image() {
    local tag=$1 packages=$2
    shift 2
    mmdebstrap --quiet --variant=minbase --include="$packages" "$@" \
        "$suite" "$scratch/$tag.tar" ${mirror:+"$mirror"}
    docker import --change 'CMD ["bash"]' "$scratch/$tag.tar" "$name:$tag" >/dev/null
    rm "$scratch/$tag.tar"
    echo "$name:$tag $(docker image inspect --format '{{.Size}}' "$name:$tag" |
        awk '{printf "%.0f MB", $1 / 1e6}')"
}

trust=()
[ ! -r "$certificates" ] || trust=(--customize-hook="copy-in $certificates /etc/ssl/certs")

make_image build python3,python3-venv,ca-certificates "${trust[@]}"
make_image runtime python3 \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright'
