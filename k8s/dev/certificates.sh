#!/usr/bin/env bash
# Make one authority, the certificates it signs, and the kubeconfigs that use them.
set -euo pipefail
# shellcheck source=k8s/dev/settings.sh
. "$(dirname "$0")/settings.sh"
umask 077

main() {
    mkdir -p "$CERTIFICATES"
    cd "$CERTIFICATES"
    key authority
    request authority "/CN=modelmill development cluster" CA:TRUE DNS:modelmill >authority.crt
    key service-accounts

    certificate kube-apiserver "/CN=kube-apiserver" \
        "IP:$NODE_ADDRESS,IP:${SERVICES%0/24}1,DNS:kubernetes.default.svc"
    certificate kubelet "/O=system:nodes/CN=system:node:$NODE" "IP:$NODE_ADDRESS,DNS:$NODE"
    certificate kubelet-client "/O=system:masters/CN=kube-apiserver"
    certificate front-proxy "/CN=front-proxy"
    certificate kube-controller-manager "/CN=system:kube-controller-manager"
    certificate kube-scheduler "/CN=system:kube-scheduler"
    certificate kube-proxy "/CN=system:kube-proxy"
    certificate admin "/O=system:masters/CN=admin"

    local name
    for name in kubelet kube-controller-manager kube-scheduler kube-proxy admin; do
        kubeconfig "$name" >"$name.kubeconfig"
    done
    cp admin.kubeconfig "$STATE/kubeconfig"
}

key() {
    openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
}

certificate() { # certificate NAME SUBJECT [ALTERNATIVE NAMES]
    key "$1"
    request "$1" "$2" CA:FALSE "${3:-DNS:$1}" -CA authority.crt -CAkey authority.key >"$1.crt"
}

request() { # request NAME SUBJECT BASIC-CONSTRAINTS ALTERNATIVE-NAMES [OPTION...]
    # The system's configuration would make every certificate an authority.
    openssl req -x509 -new -key "$1.key" -subj "$2" -days 365 "${@:5}" \
        -config <(printf '[req]\ndistinguished_name=name\n[name]\n') \
        -addext "basicConstraints=critical,$3" -addext "subjectAltName=$4" \
        -addext "extendedKeyUsage=serverAuth,clientAuth"
}

kubeconfig() {
    cat <<YAML
apiVersion: v1
kind: Config
current-context: modelmill
contexts: [{name: modelmill, context: {cluster: modelmill, user: $1}}]
clusters:
- name: modelmill
  cluster:
    server: https://$NODE_ADDRESS:6443
    certificate-authority-data: $(base64 --wrap 0 authority.crt)
users:
- name: $1
  user:
    client-certificate-data: $(base64 --wrap 0 "$1.crt")
    client-key-data: $(base64 --wrap 0 "$1.key")
YAML
}

main
