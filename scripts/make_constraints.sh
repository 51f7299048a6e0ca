#!/bin/bash
# Write constraints.txt: the version of everything that the package needs at run time, as pip
# chooses them today for this Python. The image is built with these versions.
#
#   scripts/make_constraints.sh         VENV names the virtual environment, .venv by default
set -euo pipefail
cd "$(dirname "$0")/.."

new=$(mktemp)
trap 'rm -f "$new"' EXIT
"${VENV:-.venv}/bin/python" - >"$new" <<'PYTHON'
import configparser
import json
import re
import subprocess
import sys

setup = configparser.ConfigParser()
setup.read('setup.cfg')
requirements = setup['options']['install_requires'].split('\n')[1:]
pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'install', '--quiet']
resolve = ['--dry-run', '--ignore-installed', '--report', '-']
done = subprocess.run([*pip, *resolve, *requirements], stdout=subprocess.PIPE, text=True)
if done.returncode:
    sys.exit(done.returncode)
chosen = [item['metadata'] for item in json.loads(done.stdout)['install']]
print('# Made by "make constraints" with Python %d.%d; not to be edited.' % sys.version_info[:2])
for name, version in sorted(
    (re.sub('[-_.]+', '-', item['name']).lower(), item['version']) for item in chosen
):
    print(f'{name}=={version}')
PYTHON
cat "$new" >constraints.txt
echo "constraints.txt: $(grep -c == constraints.txt) packages"
