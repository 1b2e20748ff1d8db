#!/bin/sh
# Puts NVRTC, NVIDIA's run-time compiler, into a folder, so that the GPU kernels compile on a machine without CUDA:
#
#   tools/verify/fetch-nvrtc.sh DIR
#   MARTLET_CUDA_PATH=DIR martlet doctor --kernels
#
# It is NVIDIA's own wheel on PyPI (90 MB, under NVIDIA's licence), one version, its checksum checked. It comes by pip;
# nothing is installed. A folder that has it already is left as it is.
set -eu

version=13.0.88
wheel=nvidia_cuda_nvrtc-$version-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl
sha256=ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575

fail() {
    echo "fetch-nvrtc.sh: $*" >&2
    exit 1
}
[ $# -eq 1 ] || fail "which folder? tools/verify/fetch-nvrtc.sh DIR"
folder=$1
[ "$(cat "$folder/sha256" 2>/dev/null)" != "$sha256" ] || exit 0
[ "$(uname -sm)" = "Linux x86_64" ] || fail "this is $(uname -sm); the wheel is for Linux x86_64. Name NVRTC's folder in MARTLET_CUDA_PATH"

mkdir -p "$folder"
scratch=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
command -v pip >/dev/null || fail "there is no pip: install python3-pip, or name NVRTC's folder in MARTLET_CUDA_PATH"
pip download -q --no-deps --only-binary :all: --platform manylinux2010_x86_64 -d "$scratch" \
    "nvidia-cuda-nvrtc==$version" >"$scratch/log" 2>&1 ||
    fail "NVRTC $version could not be fetched: $(tail -n 3 "$scratch/log")"
echo "$sha256  $scratch/$wheel" | sha256sum -c --status || fail "$wheel has another checksum than $sha256"

if command -v unzip >/dev/null; then
    unzip -q "$scratch/$wheel" 'nvidia/cu13/lib/*' -d "$scratch"
else
    python3 -m zipfile -e "$scratch/$wheel" "$scratch" || fail "there is neither unzip nor python3: install unzip"
fi
for library in libnvrtc.so.13 libnvrtc-builtins.so.13.0; do
    mv "$scratch/nvidia/cu13/lib/$library" "$folder/$library"
done
echo "$sha256" >"$folder/sha256"
echo "$folder: NVRTC $version"
