{{/* A webhook configuration. The controller sets caBundle, path and owner, unless others do by these values. */}}
{{- define "imagewarm.webhooks" -}}
{{- $root := index . 0 -}}
{{- $paths := $root.Values.webhook.fixedPaths -}}
{{- range $object := (include "imagewarm.objects" . | fromYaml).items }}
{{- if $root.Values.certManager.enabled }}
{{- $from := printf "%s/imagewarm" $root.Release.Namespace }}
{{- $_ := set $object.metadata "annotations" (dict "cert-manager.io/inject-ca-from" $from) }}
{{- end }}
{{- if $paths.enabled }}
{{- range $webhook := $object.webhooks }}
{{- /* revisions.…, defaulting.…, validation.… */}}
{{- $_ := set $webhook.clientConfig.service "path" (index $paths (splitList "." $webhook.name | first)) }}
{{- end }}
{{- end }}
---
{{ toYaml $object }}
{{- end }}
{{- end -}}
