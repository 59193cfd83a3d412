{{- define "imagewarm.ipBlocks" -}}
{{- range . }}
- ipBlock:
    cidr: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* DNS; to any address, since a node-local DNS cache is not a Pod. */}}
{{- define "imagewarm.dnsEgress" -}}
- ports:
  - protocol: UDP
    port: 53
  - protocol: TCP
    port: 53
  {{- if .Values.openshift.enabled }}
  # OpenShift's DNS Pods listen on 5353, and policies see that port rather than the Service's 53.
  - protocol: UDP
    port: 5353
  - protocol: TCP
    port: 5353
  {{- end }}
{{- end -}}
