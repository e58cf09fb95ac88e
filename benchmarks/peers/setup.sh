#!/bin/sh
# An environment of its own for each peer: benchmarks/peers/.venv/<peer>. Usage: sh benchmarks/peers/setup.sh [peer ...]
set -e
here=$(dirname "$0")
[ $# -gt 0 ] || set -- llm_compressor torch_pruning torchao modelopt
for peer in "$@"; do
    [ -x "$here/.venv/$peer/bin/python" ] || "${PYTHON:-python3}" -m venv "$here/.venv/$peer"
    "$here/.venv/$peer/bin/pip" install --quiet "$(grep '^torch>' "$here/$peer.txt")"
    "$here/.venv/$peer/bin/pip" install --quiet --requirement "$here/$peer.txt"
    case $peer in modelopt) "$here/.venv/$peer/bin/pip" install --quiet --no-deps torchprofile==0.0.4 ;; esac
    case $peer in torchao | liger) "$here/.venv/$peer/bin/pip" install --quiet --editable "$here/../.." ;; esac
done
