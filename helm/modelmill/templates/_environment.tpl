{{/*
  What `python -m modelmill.conduct` is started with:
    MODELMILL_RUN            the run, which is called like the release
    MODELMILL_NAMESPACE      where its objects are
    MODELMILL_REVISION       of this conductor; the anchor's annotation modelmill/revision names the live one
    MODELMILL_ANCHOR         the ConfigMap that owns the stages' Jobs; its UID is looked up
    MODELMILL_CONDUCTOR_JOB  its own Job, whose backoffLimit it sets to 0 at the end
    /etc/modelmill/run.json, /etc/modelmill/profile.json
  and the store as stages get it, by the AWS SDK's own names.
*/}}
{{- define "modelmill.environment" -}}
{{- $store := .Values.profile.store }}
{{- $proxy := .Values.profile.proxy }}
{{- $hub := .Values.profile.hub }}
{{- $ca := .Values.profile.ca_bundle }}
{{- $settings := list
  (list "MODELMILL_RUN" .Release.Name)
  (list "MODELMILL_NAMESPACE" .Release.Namespace)
  (list "MODELMILL_REVISION" (include "modelmill.revision" .))
  (list "MODELMILL_ANCHOR" (include "modelmill.anchor" .))
  (list "MODELMILL_CONDUCTOR_JOB" (include "modelmill.conductor" .))
  (list "MODELMILL_TERMINATION" "/dev/termination-log")
  (list "MODELMILL_STORE" $store.url)
  (list "USER" "modelmill")
  (list "LOGNAME" "modelmill")
  (list "HOME" "/tmp")
  (list "TMPDIR" "/tmp")
  (list "XDG_CACHE_HOME" "/tmp/.cache")
  (list "PYTHONUNBUFFERED" "1")
  (list "HF_HUB_OFFLINE" "0")
  (list "HF_HUB_DISABLE_TELEMETRY" "1")
  (list "HF_HOME" "/tmp/.cache/huggingface")
  (list "HF_ENDPOINT" $hub.endpoint_url)
  (list "AWS_ENDPOINT_URL" $store.endpoint_url)
  (list "AWS_DEFAULT_REGION" $store.region)
  (list "HTTP_PROXY" $proxy.http_proxy)
  (list "HTTPS_PROXY" $proxy.https_proxy)
}}
{{- if $store.credentials_secret }}
{{- $settings = append $settings (list "AWS_SHARED_CREDENTIALS_FILE" "/run/modelmill/store/credentials") }}
{{- $settings = append $settings (list "AWS_EC2_METADATA_DISABLED" "true") }}
{{- end }}
{{- if $hub.token_secret }}
{{- $settings = append $settings (list "HF_TOKEN_PATH" "/run/modelmill/hub/token") }}
{{- end }}
{{- if .Values.profile.webhook.secret }}
{{- $settings = append $settings (list "MODELMILL_WEBHOOK_FOLDER" "/run/modelmill/webhook") }}
{{- end }}
{{- if or $proxy.http_proxy $proxy.https_proxy $proxy.no_proxy }}
{{- /* Kubernetes fills in the API server's address, which no proxy must be asked for. */}}
{{- $settings = append $settings (list "NO_PROXY" (list $proxy.no_proxy "$(KUBERNETES_SERVICE_HOST)" | compact | join ",")) }}
{{- end }}
{{- if $ca.config_map }}
{{- range list "AWS_CA_BUNDLE" "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" }}
{{- $settings = append $settings (list . (printf "/run/modelmill/ca/%s" $ca.key)) }}
{{- end }}
{{- end }}
{{- range $settings }}
{{- if last . }}
- name: {{ first . }}
  value: {{ last . | quote }}
{{- end }}
{{- end }}
{{- end }}
