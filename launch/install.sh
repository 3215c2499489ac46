#!/usr/bin/env bash
# install.sh [--get-python] VENV EXTRAS: an editable installation in a virtual environment, made if it is not there.
set -euo pipefail
usage() { sed -n '2s/^# //p' "$0"; }
if [ "${1:-}" = --help ]; then usage; exit; fi
get=''
[ "${1:-}" != --get-python ] || { get=1; shift; } # with uv, on machines whose own is older
[ $# -eq 2 ] || { usage >&2; exit 2; }
venv=$1 extras=$2

find_python() { # the first interpreter of 3.12 or newer
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.13 python3 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[23]*/bin/python; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
    if [ -n "${PYTHON:-}" ]; then
      echo "PYTHON=$PYTHON is no Python >= 3.12 with the venv module." >&2
      return 1
    fi
  done
  echo "offpolicy-rl needs Python >= 3.12 and found none. Install it, for example with" >&2
  echo "  apt-get install python3.12 python3.12-venv    or    pyenv install 3.12" >&2
  echo "and run make again, or name one: make PYTHON=/path/to/python3.12" >&2
  return 1
}

if [ -n "$get" ] && ! command -v python3.12 > /dev/null; then
  python3 -m pip install --quiet --user uv && "$HOME/.local/bin/uv" python install 3.12
  PATH=$HOME/.local/bin:$PATH
fi
if ! "$venv/bin/python" -c '' 2>/dev/null; then
  python=$(find_python)
  echo "Making $venv with $python ..."
  "$python" -m venv "$venv"
fi
echo "Installing offpolicy-rl[$extras] and what it needs: minutes and about 1.2 GB the first time (3 GB with seqio) ..."
show=${BASH_SOURCE[0]%/*}/show_pip.py
"$venv/bin/python" "$show" "$venv/bin/python" -m pip install --disable-pip-version-check --editable ".[$extras]"
