#!/bin/sh
# Build images with buildah, each after those it is made from; no daemon.
#   images/build.sh [NAME...]      without names: every image that CI builds
#   images/build.sh NAME-cml       the same as a Runtime of Cloudera AI
# BASE_IMAGE   what `base` starts from, instead of the Dockerfile's CUDA image
# REPOSITORY   what names start with (localhost/modelmill)
# SSL_CERT_FILE  certificates to trust while building: the secret `ca`
# BUILD_FLAGS  more for buildah, as --secret id=uv,src=FILE
set -eu
cd "$(dirname "$0")/.."
repository=${REPOSITORY:-localhost/modelmill}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null || echo unknown)
built=" "
[ -z "${SSL_CERT_FILE:-}" ] || BUILD_FLAGS="--secret id=ca,src=$SSL_CERT_FILE ${BUILD_FLAGS:-}"

# One Dockerfile makes a Runtime of whatever image is its `stage`.
folder() {
    case $1 in *-cml) echo cml ;; *) echo "$1" ;; esac
}

# The Dockerfiles themselves say what they are made from: a FROM or a --from that names a folder.
parents() {
    sed -n -E 's/^FROM ([a-z-]+)( .*)?$/\1/p; s/.*[-,]from=([a-z-]+)[ ,].*/\1/p; s/^FROM ([a-z-]+)$/\1/p' \
        "images/$(folder "$1")/Dockerfile" | sort -u
}

# Which image such a name is, in an image that is being built.
image_of() {
    if [ "$1" = stage ]; then echo "${2%-cml}"; else echo "$1"; fi
}

# A Runtime's label says which Python it offers, and that is the base image's.
python_of() {
    container=$(buildah from --pull-never "$1")
    buildah run --isolation chroot "$container" -- \
        python -c 'import sys; print("%d.%d" % sys.version_info[:2])'
    buildah rm "$container" >/dev/null
}

build() {
    case $built in *" $1 "*) return ;; esac
    [ -f "images/$(folder "$1")/Dockerfile" ] || { echo "There is no image '$1'" >&2; exit 64; }
    for parent in $(parents "$1"); do build "$(image_of "$parent" "$1")"; done
    built="$built$1 "
    started=$(date +%s)
    set -- "$1" --file "images/$(folder "$1")/Dockerfile" --tag "$repository-$1:$version"
    for parent in $(parents "$1"); do
        image=$repository-$(image_of "$parent" "$1"):$version
        set -- "$@" --build-context "$parent=container-image://$image"
        [ "$parent" != stage ] || set -- "$@" \
            --build-arg "STAGE=${1%-cml}" --build-arg "PYTHON=$(python_of "$image")"
    done
    [ "$1" != base ] || [ -z "${BASE_IMAGE:-}" ] || set -- "$@" --build-arg "BASE_IMAGE=$BASE_IMAGE"
    echo "Building $repository-$1:$version" >&2
    name=$1
    shift
    # BUILD_FLAGS is a list of words.
    # shellcheck disable=SC2086
    buildah bud --quiet --layers --isolation chroot --format oci \
        --build-arg "VERSION=$version" --build-arg "REVISION=$revision" ${BUILD_FLAGS:-} "$@" .
    echo "$name took $(($(date +%s) - started)) s" >&2
}

[ $# -gt 0 ] || set -- light finetune merge quantize infer light-cml
for name in "$@"; do build "$name"; done
