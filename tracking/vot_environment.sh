#!/usr/bin/env bash
# Make an environment in which the VOT toolkit (GPL-3.0) runs as another process beside edgemim's edge wing.
#     tracking/vot_environment.sh FOLDER
# attributee 0.1.10, which the toolkit would take, fails when it is imported.
set -euo pipefail
folder=${1:?usage: vot_environment.sh FOLDER}
root=$(cd "$(dirname "$0")/.." && pwd)
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check -c "$root/constraints.txt" "$root"
"$folder/bin/pip" install --quiet --disable-pip-version-check 'vot-toolkit==0.9.0' 'attributee==0.1.9'
echo "$folder/bin/vot"
