{{/*
The objects of a file below shared/, which is a file of the kustomizations: (list $ "rbac/users.yaml").
For this namespace, with the chart's labels. Returns YAML: {items: […]}.
*/}}
{{- define "imagewarm.objects" -}}
{{- $root := index . 0 -}}
{{- $file := printf "shared/%s" (index . 1) -}}
{{- $text := required (printf "the chart lacks %s" $file) ($root.Files.Get $file) -}}
{{- $items := list -}}
{{- range splitList "\n---\n" ($text | replace "imagewarm-system" $root.Release.Namespace) -}}
{{- $object := fromYaml . -}}
{{- if hasKey $object "Error" -}}{{- fail (printf "%s: %s" $file $object.Error) -}}{{- end -}}
{{- $labels := merge (index $object.metadata "labels" | default dict) (include "imagewarm.chartLabels" $root | fromYaml) -}}
{{- $_ := set $object.metadata "labels" $labels -}}
{{- $items = append $items $object -}}
{{- end -}}
{{- toYaml (dict "items" $items) -}}
{{- end -}}

{{/* The same as documents, as they are. */}}
{{- define "imagewarm.render" -}}
{{- range (include "imagewarm.objects" . | fromYaml).items }}
---
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What the chart adds to the labels of each object, but not of Pods: they would be replaced at each upgrade. */}}
{{- define "imagewarm.chartLabels" -}}
{{- $labels := dict "helm.sh/chart" (printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_")) -}}
{{- $_ := set $labels "app.kubernetes.io/managed-by" .Release.Service -}}
{{- toYaml (merge $labels .Values.commonLabels) -}}
{{- end -}}

{{/* The labels of an object of the imagecontroller or the imagewarmer, and further ones: (list $ "imagewarmer" (dict)). */}}
{{- define "imagewarm.labels" -}}
{{- $labels := include "imagewarm.ownLabels" (index . 1) | fromYaml -}}
{{- toYaml (merge $labels (include "imagewarm.chartLabels" (index . 0) | fromYaml) (index . 2)) -}}
{{- end -}}

{{/* What objects and Pods are found by. */}}
{{- define "imagewarm.ownLabels" -}}
app.kubernetes.io/name: {{ . }}
app.kubernetes.io/part-of: imagewarm
{{- end -}}
