#!/bin/sh
# Writes pnode/v1/*_pb2* from protos/. The generated code is committed; a test holds it equal to what this writes.
set -eu
cd "$(dirname "$0")/.."
out=${1:-.}
python=${PYTHON:-.venv/bin/python}
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -Iprotos \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" protos/pnode/v1/*.proto
