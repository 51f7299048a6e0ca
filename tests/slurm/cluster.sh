#!/bin/bash
# A SLURM cluster of Docker containers: a controller, NAME-ctl, and two compute nodes, NAME-c1 and
# NAME-c2, all of one image and on one network that leads nowhere else.
#
#   cluster.sh image IMAGE TAG     make the image TAG: IMAGE with SLURM beside it
#   cluster.sh up NAME TAG SHARED  start the cluster; the folder SHARED is /shared on every host
#   cluster.sh down NAME           remove it, or what there is of it; the folder stays
#
# Jobs are those of the user JOB_UID (1000), which every host knows. Then, for example:
#   docker exec --user 1000 NAME-ctl sinfo
set -euo pipefail
cd "$(dirname "$0")"

job_uid=${JOB_UID:-1000}
die() {
    echo "cluster.sh: $*" >&2
    exit 1
}

image() {
    local name said
    local arguments=()
    for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
        [ -z "${!name:-}" ] || arguments+=(--build-arg "$name")
    done
    said=$(docker build "${arguments[@]}" --build-arg "BASE_IMAGE=$1" --tag "$2" - <Dockerfile \
        2>&1) || die "cannot add SLURM to $1: $said"
}

# host NAME IMAGE SHARED HOST MEMORY COMMAND...
# With SYS_PTRACE the daemon reads how much memory the processes of other users have.
host() {
    local name=$1 image=$2 shared=$3 host=$4 memory=$5
    shift 5
    docker run --detach --init --user 0 --name "$name-$host" --hostname "$host" \
        --network "$name" --network-alias "$host" --label "slurm-cluster=$name" \
        --memory "$memory" --cap-add SYS_PTRACE --env "JOB_UID=$job_uid" \
        --mount "type=bind,source=$shared/.slurm,target=/etc/slurm,readonly" \
        --mount "type=bind,source=$shared,target=/shared" --workdir /shared \
        --entrypoint /bin/sh "$image" /etc/slurm/host.sh "$@" >/dev/null
}

up() {
    local name=$1 image=$2 shared try
    shared=$(cd "$3" && pwd)
    [ -z "$(docker ps -aq --filter "label=slurm-cluster=$name")" ] ||
        die "$name is up already: cluster.sh down $name"
    mkdir -p "$shared/.slurm"
    cp slurm.conf host.sh "$shared/.slurm/"
    (umask 077 && head -c 128 /dev/urandom >"$shared/.slurm/munge.key")
    docker network create --internal --label "slurm-cluster=$name" "$name" >/dev/null
    host "$name" "$image" "$shared" c1 3g slurmd -D -N c1
    host "$name" "$image" "$shared" c2 3g slurmd -D -N c2
    # Last, since it looks up the addresses of the nodes when it starts.
    host "$name" "$image" "$shared" ctl 2g slurmctld -D
    for try in {1..120}; do
        if [ "$(docker exec "$name-ctl" sinfo -h -N -p main -t idle -o %N 2>/dev/null |
            wc -l)" -eq 2 ]; then
            return
        fi
        sleep 0.5
    done
    docker ps -a --filter "label=slurm-cluster=$name" --format '{{.Names}}: {{.Status}}' >&2
    for try in ctl c1 c2; do
        docker logs --tail 5 "$name-$try" >&2 || true
    done
    die 'the nodes are not ready after 60 s, see above'
}

down() {
    local containers networks
    mapfile -t containers < <(docker ps -aq --filter "label=slurm-cluster=$1")
    mapfile -t networks < <(docker network ls -q --filter "label=slurm-cluster=$1")
    [ ${#containers[@]} -eq 0 ] || docker rm --force --volumes "${containers[@]}" >/dev/null
    [ ${#networks[@]} -eq 0 ] || docker network rm "${networks[@]}" >/dev/null
}

case "${1:-} $#" in
'image 3' | 'up 4' | 'down 2') "$@" ;;
*)
    sed -n '2,11s/^# \{0,1\}//p' cluster.sh >&2
    exit 2
    ;;
esac
