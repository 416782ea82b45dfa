{{/* What the schema cannot tell; every problem at once, in words, before anything is created. */}}

{{- define "modelmill.check" -}}
{{- $problems := list }}
{{- $name := .Release.Name }}
{{- if or (gt (len $name) 20) (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name)) }}
{{- $problems = append $problems (printf "release name '%s': the run is called like it; at most 20 lower-case letters, digits and dashes, starting with a letter" $name) }}
{{- end }}
{{- if not .Values.profile.images.registry }}
{{- $problems = append $problems "profile.images.registry: say where the images are, such as registry.example.com/team" }}
{{- end }}
{{- if not .Values.profile.store.url }}
{{- $problems = append $problems "profile.store.url: say where everything is kept, such as s3://bucket/prefix" }}
{{- end }}
{{- $run := .Values.run }}
{{- $eval := $run.data.eval | default "" }}
{{- $train := $run.data.train | default "" }}
{{- $sources := dict "model.source" $run.model.source "data.test" $run.data.test "data.train" (ternary $train "" (kindIs "string" $train)) "data.eval" (ternary $eval "" (kindIs "string" $eval)) }}
{{- if kindIs "slice" $train }}
{{- range $index, $each := $train }}
{{- $sources = set $sources (printf "data.train[%d].source" $index) $each.source }}
{{- end }}
{{- end }}
{{- with $run.finetune }}
{{- $sources = set $sources "finetune.adapter" (.adapter | default "") }}
{{- $sources = set $sources "finetune.init_adapter" (.init_adapter | default "") }}
{{- end }}
{{- range $index, $each := $run.quantize }}
{{- $calibration := $each.calibration | default dict }}
{{- $sources = set $sources (printf "quantize[%d].calibration.text" $index) ($calibration.text | default "") }}
{{- end }}
{{- range $key, $source := $sources }}
{{- if and $source (not $.Values.submitted) (not (regexMatch "^(s3://|hf:)" $source)) }}
{{- $problems = append $problems (printf "run.%s: '%s' is a local path, which a cluster cannot read; use s3:// or hf:, or `modelmill submit`, which uploads it" $key $source) }}
{{- end }}
{{- end }}
{{- $profile := .Values.profile }}
{{- range $kind, $pods := $profile.stages }}
{{- /* What the kind gets that nobody mentioned: the same as `stage_pods` lays under it. */}}
{{- $gpu := int (ternary $pods.gpu (ternary 0 1 (eq $profile.accelerator "cpu")) (hasKey $pods "gpu")) }}
{{- $ranks := int ($pods.ranks | default 0) }}
{{- if and (ne $kind "infer") (gt (int ($pods.shards | default 1)) 1) }}
{{- $problems = append $problems (printf "profile.stages.%s.shards: only infer can be shared by several pods" $kind) }}
{{- end }}
{{- if ne $kind "finetune" }}
{{- if $ranks }}
{{- $problems = append $problems (printf "profile.stages.%s.ranks: only finetune has several processes" $kind) }}
{{- end }}
{{- if ne ($pods.fsdp | default "auto") "auto" }}
{{- $problems = append $problems (printf "profile.stages.%s.fsdp: only finetune has several processes" $kind) }}
{{- end }}
{{- else if and $gpu (gt $ranks $gpu) }}
{{- $problems = append $problems (printf "profile.stages.%s.ranks: each needs a GPU, and gpu is %d" $kind $gpu) }}
{{- end }}
{{- end }}
{{- $text := toJson (dict "run" $run "profile" .Values.profile) }}
{{- if gt (len $text) 65536 }}
{{- $problems = append $problems (printf "run and profile: %d bytes are more than 64 KiB; refer to data, do not embed it" (len $text)) }}
{{- end }}
{{- if regexMatch "(AKIA|ASIA)[A-Z0-9]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|\\bhf_[A-Za-z0-9]{20,}|://[^/@\\s\"]+:[^/@\\s\"]+@" (toJson .Values) }}
{{- $problems = append $problems "values: something looks like a credential; Helm keeps values for ever, so name a Secret in profile.store.credentials_secret or profile.hub.token_secret instead" }}
{{- end }}
{{- if $problems }}
{{- fail (printf "\n\n%s\n" (join "\n" $problems)) }}
{{- end }}
{{- end }}
