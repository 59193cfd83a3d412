{{/*
The kubelet's credential provider plugins: {config, binDir, mounts, hostNetwork, egress}, of a preset or as the
values name them; empty if there are none.
*/}}
{{- define "imagewarm.credentialProvider" -}}
{{- $own := .Values.credentialProvider -}}
{{- if $own.preset -}}
{{- $presets := .Files.Get "files/credential-providers.yaml" | fromYaml -}}
{{- toYaml (index $presets $own.preset) -}}
{{- else if $own.config -}}
{{- $mounts := list -}}
{{- if not (hasPrefix (printf "%s/" $own.binDir) $own.config) -}}
{{- $mounts = append $mounts (dict "name" "credential-provider-config" "path" $own.config "type" "File") -}}
{{- end -}}
{{- $mounts = append $mounts (dict "name" "credential-provider" "path" $own.binDir "type" "Directory") -}}
{{- toYaml (dict "config" $own.config "binDir" $own.binDir "mounts" (concat $mounts $own.mounts)) -}}
{{- else -}}
{}
{{- end -}}
{{- end -}}

{{/* Whether warmers use the network of their nodes; empty for no. */}}
{{- define "imagewarm.hostNetwork" -}}
{{- $wanted := .Values.warmer.hostNetwork -}}
{{- if kindIs "invalid" $wanted -}}
{{- $wanted = (include "imagewarm.credentialProvider" . | fromYaml).hostNetwork -}}
{{- end -}}
{{- if $wanted }}true{{ end -}}
{{- end -}}

{{/* On the node's network the port is the node's: 8080 may be taken there. */}}
{{- define "imagewarm.healthPort" -}}
{{- .Values.warmer.healthPort | default (ternary 18080 8080 (eq (include "imagewarm.hostNetwork" .) "true")) | int -}}
{{- end -}}

{{- define "imagewarm.seLinuxType" -}}
{{- .Values.warmer.seLinuxType | default (ternary "spc_t" "" .Values.openshift.enabled) -}}
{{- end -}}
