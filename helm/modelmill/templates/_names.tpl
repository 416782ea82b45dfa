{{/* What objects of the release are called, and how they are marked. */}}

{{- define "modelmill.anchor" -}}
{{ .Release.Name }}-anchor
{{- end }}

{{/*
  The first characters of a digest of everything the objects are made of.  Programs that
  render without installing always say revision 1; the digest still gives changed Jobs, whose
  templates Kubernetes does not let change, another name.
*/}}
{{- define "modelmill.digest" -}}
{{ printf "%s %s" .Chart.Version (toJson .Values) | sha256sum | trunc 8 }}
{{- end }}

{{- define "modelmill.revision" -}}
{{ .Release.Revision }}-{{ include "modelmill.digest" . }}
{{- end }}

{{- define "modelmill.config" -}}
{{ .Release.Name }}-config-r{{ include "modelmill.revision" . }}
{{- end }}

{{- define "modelmill.conductor" -}}
{{ .Release.Name }}-conductor-r{{ include "modelmill.revision" . }}
{{- end }}

{{- define "modelmill.labels" -}}
app.kubernetes.io/name: modelmill
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
modelmill/run: {{ .Release.Name }}
{{- end }}

{{- define "modelmill.conductorLabels" -}}
{{ include "modelmill.labels" . }}
app.kubernetes.io/component: conductor
modelmill/revision: {{ include "modelmill.revision" . }}
modelmill/role: conductor
{{- end }}

{{- define "modelmill.image" -}}
{{- $images := .Values.profile.images -}}
{{- $name := printf "%s/modelmill-light" $images.registry -}}
{{- with $images.digests.light -}}
{{ $name }}@{{ . }}
{{- else -}}
{{ $name }}:{{ $images.tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end }}
