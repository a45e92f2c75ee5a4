#!/bin/sh
# Runs the self-test as aarch64 code under qemu-user, and fails unless it gives the golden digests.
#
# It prepares all that it needs, once, in $PNODE_AARCH64_DIR (default ~/.cache/pnode-aarch64, about 2 GB): qemu and an
# arm64 root of Debian's packages, only unpacked and never installed, so that nothing of this machine changes; and the
# aarch64 wheels. Where these cannot be had it says why and exits 0. Compiling under emulation takes some minutes;
# later runs find the kernels in the folder. Arguments go to the self-test.
set -eu
cd "$(dirname "$0")"
folder=${PNODE_AARCH64_DIR:-$HOME/.cache/pnode-aarch64}
python=${PYTHON:-../.venv/bin/python}
torch=2.9.1 # its aarch64 wheel is for CPUs only; also the oldest torch that the package allows

skip() {
  echo "skipped: $1" >&2
  exit 0
}

# apt with lists, status and archives of its own, for the machine's sources: it needs no root and installs nothing.
own_apt() {
  apt-get -qq -o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o "Dir::State=$folder/apt-$arch" \
    -o "Dir::State::status=$folder/apt-$arch/status" -o "Dir::Cache=$folder/apt-$arch" -o APT::Sandbox::User= \
    -o Debug::NoLocking=1 "$@" >&2
}

# unpack ARCHITECTURE PACKAGE...: these and what they depend on, unpacked below root-ARCHITECTURE.
unpack() {
  arch=$1
  shift
  [ ! -d "$folder/root-$arch" ] || return 0
  mkdir -p "$folder/apt-$arch/lists/partial" "$folder/apt-$arch/archives/partial"
  : >"$folder/apt-$arch/status"
  # A source that does not answer or lacks the architecture is not the end; a missing package is.
  own_apt update || true
  own_apt --yes --no-install-recommends --download-only install "$@" || skip "no Debian packages $* for $arch"
  rm -rf "$folder/root-$arch.new"
  for package in "$folder/apt-$arch"/archives/*.deb; do
    dpkg-deb -x "$package" "$folder/root-$arch.new"
  done
  mv "$folder/root-$arch.new" "$folder/root-$arch" # whole, or not there
}

wheels() {
  version=$1
  [ ! -d "$folder/wheels-$version" ] || return 0
  rm -rf "$folder/wheels.new"
  # Dependencies by name: pip would ask this machine, not aarch64, which of them are needed. Numba must be the pinned
  # one, since it is what compiles.
  "$python" -m pip --disable-pip-version-check install --quiet --no-deps --only-binary=:all: --target "$folder/wheels.new" \
    --implementation cp --python-version "$version" --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    "torch==$torch" $(grep -E '^(numpy|numba|llvmlite)==' ../constraints.txt) \
    filelock fsspec jinja2 markupsafe mpmath networkx sympy typing-extensions >&2 || skip "no aarch64 wheels"
  mv "$folder/wheels.new" "$folder/wheels-$version"
}

for tool in apt-get dpkg-deb; do
  command -v "$tool" >/dev/null || skip "this is no Debian: there is no $tool"
done
mkdir -p "$folder" 2>/dev/null || skip "$folder cannot be made"
folder=$(cd "$folder" && pwd)
unpack "$(dpkg --print-architecture)" qemu-user-static
qemu=$folder/root-$(dpkg --print-architecture)/usr/bin/qemu-aarch64-static
unpack arm64 python3 libstdc++6 libgomp1
root=$folder/root-arm64
guest=$(readlink -f "$root/usr/bin/python3")
wheels "${guest##*python}"

echo "running the self-test under qemu; with a cold cache that takes some minutes" >&2
PYTHONPATH="$PWD:$folder/wheels-${guest##*python}" PYTHONDONTWRITEBYTECODE=1 SAMEBITS_CACHE_DIR="$folder/kernels" \
  exec "$qemu" -L "$root" "$guest" -m samebits.selftest --json "$@"
