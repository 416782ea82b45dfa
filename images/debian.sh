#!/bin/sh
# Make a small base image from Debian's packages, for tests where no registry can be reached.
#   images/debian.sh [NAME]        needs root, debootstrap and buildah
set -eu
name=${1:-localhost/modelmill-debian:bookworm}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,tini bookworm "$folder/root" >&2
rm -rf "$folder/root/var/cache/apt/archives" "$folder/root/var/lib/apt/lists"
mkdir -p "$folder/root/var/cache/apt/archives/partial" "$folder/root/var/lib/apt/lists/partial"
tar --create --directory "$folder/root" --exclude ./dev --exclude ./proc --exclude ./sys --file "$folder/root.tar" .
mkdir "$folder/context"
mv "$folder/root.tar" "$folder/context"
printf 'FROM scratch\nADD root.tar /\n' > "$folder/context/Dockerfile"
buildah bud --quiet --isolation chroot --format oci --tag "$name" "$folder/context"
echo "$name" >&2
