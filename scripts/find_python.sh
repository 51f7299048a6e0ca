#!/bin/bash
# Print a Python that can make the virtual environment: 3.11 or newer, with venv and pip.
# PYTHON, if set, is the only candidate.
set -u

candidates=(python3 python3.13 python3.12 python3.11 python /usr/bin/python3)
[ -n "${PYTHON:-}" ] && candidates=("$PYTHON")

seen=''
for python in "${candidates[@]}"; do
    # To be there is not enough: version managers put names on PATH that only print an error.
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
        continue
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        seen+="  $python is $version"$'\n'
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        seen+="  $python is $version, without venv (Debian, Ubuntu: apt-get install python3-venv)"
        seen+=$'\n'
    else
        "$python" -c 'import sys; print(sys.executable)'
        exit 0
    fi
done
{
    echo "No Python 3.11 or newer with venv among: ${candidates[*]}"
    printf '%s' "$seen"
    echo "Install one, or name it: make PYTHON=/path/to/python3"
} >&2
exit 1
