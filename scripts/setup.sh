#!/usr/bin/env bash
# Sets up .venv beside this repository's Makefile:   bash scripts/setup.sh [quickstart|dev|docs|ray|vllm|doors|maniskill]
# Finds a Python that fits and hands over to scripts/install.py, which does the work; for vLLM, ManiSkill, and what
# `make test-doors` plays with, which have environments of their own, to scripts/install_vllm.py, install_maniskill.py
# and install_doors.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

script=scripts/install.py
if [ "${1:-}" = vllm ]; then script=scripts/install_vllm.py; fi
if [ "${1:-}" = doors ]; then script=scripts/install_doors.py; fi
if [ "${1:-}" = maniskill ]; then script=scripts/install_maniskill.py; fi
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
found=""
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
    # Run it: a version manager's stub can be on the path without the version behind it.
    if version=$("$candidate" --version 2>/dev/null </dev/null); then
        found="$found $candidate (${version#Python })"
        if "$candidate" -c "$fits" 2>/dev/null </dev/null; then
            exec "$candidate" -u "$script" "$@" </dev/null
        fi
    fi
done
{
    echo "setup: needs Python 3.11, 3.12 or 3.13; found:${found:- none}."
    echo "  Debian, Ubuntu:  sudo apt-get install -y python3.11 python3.11-venv"
    echo "  elsewhere:       install Python 3.11 and name it:  PYTHON=/path/to/python3.11 make setup"
} >&2
exit 1
