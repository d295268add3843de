{{- define "laban.modelClaim" -}}
{{- with .Values.model.volume -}}
{{- if .claim }}{{ .claim }}{{ else if .size }}{{ include "laban.fullname" $ }}-models{{ end -}}
{{- end -}}
{{- end -}}

{{- define "laban.modelMount" -}}
{{- if include "laban.modelClaim" . -}}
- {name: models, mountPath: {{ .Values.model.volume.mountPath | quote }}, readOnly: true}
{{- end -}}
{{- end -}}

{{- define "laban.modelVolume" -}}
{{- with include "laban.modelClaim" . -}}
- name: models
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end -}}
{{- end -}}

{{/* The download puts the model's folder in its place at the end: where there is one, it is whole. */}}
{{- define "laban.modelWait" -}}
{{- if .Values.model.download.repository -}}
- name: wait-for-model
  image: {{ include "laban.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [bash, -c, 'until test -d "$MODEL"; do sleep 2; done']
  env:
    - {name: MODEL, value: {{ .Values.config.model | quote }}}
  securityContext:
    {{- include "laban.containerSecurity" . | nindent 4 }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  volumeMounts:
    {{- include "laban.modelMount" . | nindent 4 }}
{{- end -}}
{{- end -}}
