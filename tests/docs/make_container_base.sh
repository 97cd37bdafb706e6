#!/usr/bin/env bash
# A base image for tests/docs/test_container.py: Debian with Python and the tested torch, without CUDA's gigabytes.
#
#   tests/docs/make_container_base.sh localhost/gpt2_hf_base [OPTION ...]
#
# As root, with debootstrap and buildah. The options go to `buildah run`: pip's settings inside decide where torch comes
# from. Where the default index has only the build for CUDA, name that of the CPU build: --env PIP_INDEX_URL=...
# A machine with a pip configuration hands it over: --volume /etc/pip.conf:/etc/pip.conf:ro
set -euo pipefail
image=${1:?give the name of the image}
shift
torch=$(grep '^torch==' "$(dirname "$0")/../../constraints.txt")

folder=$(mktemp -d)
container=
trap '[[ -z $container ]] || buildah rm "$container" > /dev/null; rm -rf "$folder"' EXIT

debootstrap --variant=minbase --include=python3,python3-pip,python-is-python3,ca-certificates bookworm "$folder/root"
rm -rf "$folder"/root/var/cache/apt/*.bin "$folder"/root/var/cache/apt/archives/*.deb "$folder"/root/var/lib/apt/lists/*
container=$(buildah from scratch)
buildah add --quiet "$container" "$folder/root" /
buildah run --isolation chroot --env PIP_BREAK_SYSTEM_PACKAGES=1 --env PIP_NO_CACHE_DIR=1 "$@" "$container" -- \
  pip install "$torch"
buildah commit --quiet "$container" "$image"
