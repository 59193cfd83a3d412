{{- define "imagewarm.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end -}}

{{/*
Flags of the program, from a map of settings: canaryNodes: 3 becomes --canary-nodes=3. Lists are joined with
commas, maps become KEY=VALUE,….
*/}}
{{- define "imagewarm.flags" -}}
{{- range $name, $value := . -}}
{{- if not (kindIs "invalid" $value) }}
- {{ printf "--%s=%s" (kebabcase $name) (include "imagewarm.flagValue" $value) | quote }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "imagewarm.flagValue" -}}
{{- if kindIs "slice" . -}}
{{- join "," . -}}
{{- else if kindIs "map" . -}}
{{- $pairs := list -}}
{{- range $key, $value := . }}{{ $pairs = append $pairs (printf "%s=%s" $key $value) }}{{ end -}}
{{- join "," $pairs -}}
{{- else if kindIs "float64" . -}}
{{- /* A number from a file. As it is, a million would be 1e+06. */ -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- define "imagewarm.podAnnotations" -}}
{{- $root := index . 0 -}}{{- $container := index . 1 -}}{{- $port := index . 2 -}}{{- $own := index . 3 -}}
{{- $annotations := dict "kubectl.kubernetes.io/default-container" $container -}}
{{- if $root.Values.monitoring.scrapeAnnotations -}}
{{- $_ := set $annotations "prometheus.io/scrape" "true" -}}
{{- $_ := set $annotations "prometheus.io/port" (toString $port) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $annotations $own) -}}
{{- end -}}
