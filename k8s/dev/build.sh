#!/usr/bin/env bash
# Build the Go programs of the cluster into the cache, each version once.
# Ten minutes and 7 GB of temporary disk at first, nothing afterwards.
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"

main() {
    work=$(mktemp -d "${TMPDIR:-/tmp}/modelmill-build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # The programs share sources and objects, and once they are linked nothing needs them.
    export GOPATH=$work/go GOCACHE=$work/objects GOFLAGS="-modcacherw -trimpath -mod=mod"
    export CGO_ENABLED=0

    ensure "kubernetes-$KUBERNETES" kubernetes
    ensure "etcd-$ETCD" command etcd go.etcd.io/etcd/server/v3 "v$ETCD"
    ensure "helm-$HELM" command helm helm.sh/helm/v4 "v$HELM" /cmd/helm
    ensure "kueue-$KUEUE" kueue
    ensure "coredns-$COREDNS" own coredns github.com/coredns/coredns "v$COREDNS"
    ensure "registry-$REGISTRY" own registry github.com/distribution/distribution/v3 "v$REGISTRY"
    ensure "pause-$PAUSE" own pause
}

# ensure FOLDER BUILDER ARGUMENT...: call the builder in a module of its own unless the cache
# has the folder, which appears only when it is whole.
ensure() {
    local folder=$BINARIES/$1 builder=$2
    shift 2
    [ -d "$folder" ] && return
    command -v go >/dev/null || fail "Building the cluster needs Go 1.26 or later: https://go.dev/dl"
    echo "Building ${folder##*/}" >&2
    rm -rf "${work:?}"/{module,bin}
    mkdir -p "$work"/{module,bin} "$BINARIES"
    (cd "$work/module" && go mod init throwaway && "build_$builder" "$@") \
        2> >(grep -vE '^go: (downloading|added|creating)' >&2)
    mv "$work/bin" "$folder"
}

link() { # link OUTPUT PACKAGE [LINKER FLAGS]
    go build -ldflags "-s -w ${3-}" -o "$work/bin/$1" "$2"
}

build_kubernetes() {
    local requirements version=v$KUBERNETES build=k8s.io/component-base/version name
    requirements=$(go list -m -f '{{.GoMod}}' "k8s.io/kubernetes@$version")
    go mod edit -require "k8s.io/kubernetes@$version"
    # Its own libraries are required as v0.0.0, published as v0.34.4.
    awk '$2 == "v0.0.0" { print $1 }' "$requirements" | while read -r library; do
        go mod edit -replace "$library=$library@v0.${KUBERNETES#*.}"
    done
    cp "$DEV/programs/kubernetes/main.go" .
    link kubernetes . "-X $build.gitVersion=$version -X $build.gitMajor=${KUBERNETES%%.*} \
        -X $build.gitMinor=$(cut -d. -f2 <<<"$KUBERNETES")"
    for name in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
        ln -s kubernetes "$work/bin/$name"
    done
}

build_command() { # build_command NAME MODULE VERSION [PACKAGE BELOW IT]
    go get "$2@$3"
    link "$1" "$2${4-}"
}

build_kueue() {
    # Not in the public checksum database.
    export GONOSUMDB=sigs.k8s.io/scheduler-library
    build_command kueue sigs.k8s.io/kueue "v$KUEUE" /cmd/kueue
    cp -r "$(go list -m -f '{{.Dir}}' sigs.k8s.io/kueue)/charts/kueue" "$work/bin/chart"
}

build_own() { # build_own NAME [MODULE VERSION]: programs/NAME, which needs the module
    [ $# -eq 1 ] || go get "$2@$3"
    cp "$DEV/programs/$1/main.go" .
    link "$1" .
}

main
