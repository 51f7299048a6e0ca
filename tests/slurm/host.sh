#!/bin/sh
# Become a host of the test cluster: munged with the key that all share, the user of the jobs, and
# the daemon that the arguments name. A host that was killed starts with it again.
set -e
PATH=$PATH:/usr/sbin:/sbin
install -m 600 -o munge -g munge /etc/slurm/munge.key /etc/munge/munge.key
install -d -o munge -g munge /run/munge
mkdir -p /var/spool/slurmd /var/spool/slurmctld
rm -f /run/munge/*.pid
setpriv --reuid=munge --regid=munge --clear-groups munged --force
getent passwd "$JOB_UID" >/dev/null ||
    useradd --uid "$JOB_UID" --home-dir /home/app --shell /bin/bash researcher
exec "$@"
