#!/usr/bin/env bash
# Generates the Python code of laban.proto: `bash proto/generate.sh`. With --check, fails if what is checked in is stale.
#
# The generator has a virtual environment of its own, because generated code is refused by a protobuf runtime older than
# itself: grpcio-tools 1.73 writes code that loads from protobuf 6.31 on, newer ones would ask more of our users.
set -euo pipefail
cd "$(dirname "$0")/.."

tools_version=1.73.0
venv=.venv-proto
if [[ "$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("grpcio-tools"))' 2>/dev/null)" != "$tools_version" ]]; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "grpcio-tools==$tools_version" "setuptools<81"
fi

generate() { # into the folder $1
    local root
    root=$(mktemp -d)
    # `-Ilaban/proto=proto` lets protoc see the file under its package's path, so that the imports come out right.
    "$venv/bin/python" -W ignore -m grpc_tools.protoc -Ilaban/proto=proto \
        --python_out="$root" --pyi_out="$root" --grpc_python_out="$root" laban/proto/laban.proto
    cp "$root"/laban/proto/laban_pb2.py "$root"/laban/proto/laban_pb2.pyi "$root"/laban/proto/laban_pb2_grpc.py "$1"/
    rm -r "$root"
}

case "${1:-}" in
"")
    generate proto
    ;;
--check)
    fresh=$(mktemp -d)
    trap 'rm -r "$fresh"' EXIT
    generate "$fresh"
    for file in laban_pb2.py laban_pb2.pyi laban_pb2_grpc.py; do
        if ! diff -q "$fresh/$file" "proto/$file" >/dev/null; then
            echo "proto/$file is stale: run 'make proto' and commit the result" >&2
            exit 1
        fi
    done
    echo "proto: generated code is up to date"
    ;;
*)
    echo "usage: bash proto/generate.sh [--check]" >&2
    exit 2
    ;;
esac
