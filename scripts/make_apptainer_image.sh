#!/bin/bash
# Make an image that holds the real Apptainer, for the tests of the app under it: Debian's own
# package, which is in unstable alone, and a user 1000 ("user").
#
#   scripts/make_apptainer_image.sh [NAME]       NAME is precondqsm_bids-apptainer by default
#
# An image that is there already is kept; `docker rmi NAME` makes the next call build it anew.
# SUITE (sid) and MIRROR (mmdebstrap's own choice) are taken from the environment.
set -euo pipefail

name=${1:-precondqsm_bids-apptainer}
suite=${SUITE:-sid}
mirror=${MIRROR:-}
certificates=/etc/ssl/certs/ca-certificates.crt

fail() {
    echo "make_apptainer_image: $1" >&2
    exit 1
}

command -v docker >/dev/null || fail 'no docker command here; install Docker Engine first'
if docker image inspect "$name" >/dev/null 2>&1; then
    exit 0
fi
if ! command -v mmdebstrap >/dev/null; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        fail "mmdebstrap is missing; install it (Debian, Ubuntu: 'apt-get install mmdebstrap')"
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap \
        >/dev/null
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The host's certificates serve the %post of a definition file, whose pip may meet a proxy that
# signs for itself. A mirror of unstable may be some days old, which apt would refuse.
trust=()
[ ! -r "$certificates" ] || trust=(--customize-hook="copy-in $certificates /etc/ssl/certs")
echo "Making $name: Apptainer of Debian $suite."
mmdebstrap --quiet --variant=minbase \
    --aptopt='Acquire::Check-Valid-Until "false"' \
    --include=ca-certificates,apptainer,squashfs-tools,squashfuse,fuse3,fuse-overlayfs,uidmap \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash user' \
    "${trust[@]}" "$suite" "$scratch/apptainer.tar" ${mirror:+"$mirror"}
docker import --change 'CMD ["bash"]' "$scratch/apptainer.tar" "$name" >/dev/null
echo "$name $(docker image inspect --format '{{.Size}}' "$name" |
    awk '{printf "%.0f MB", $1 / 1e6}'), $(docker run --rm "$name" apptainer --version)"
