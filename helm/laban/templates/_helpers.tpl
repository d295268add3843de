{{- define "laban.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 30 | trimSuffix "-" -}}
{{- end -}}

{{/* Short: KubeRay appends to it, and cuts what is too long. */}}
{{- define "laban.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 30 | trimSuffix "-" -}}
{{- else if contains (include "laban.name" .) .Release.Name -}}
{{- .Release.Name | trunc 30 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "laban.name" .) | trunc 30 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "laban.selector" -}}
app.kubernetes.io/name: {{ include "laban.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "laban.labels" -}}
{{ include "laban.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "laban.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ with .tag }}:{{ . }}{{ end }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end -}}

{{/* laban.yaml: what the values say, and where they are silent what follows from them. */}}
{{- define "laban.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $server := get $config "server" -}}
{{- if .Values.secrets.tls -}}
{{- $_ := set $server "tls_cert" "/etc/laban/tls/tls.crt" -}}
{{- $_ := set $server "tls_key" "/etc/laban/tls/tls.key" -}}
{{- if .Values.secrets.tlsClients -}}
{{- $_ := set $server "tls_client_ca" "/etc/laban/tls/ca.crt" -}}
{{- end -}}
{{- if .Values.secrets.tlsPeers -}}
{{- $_ := set $server "peer_cert" "/etc/laban/peers/tls.crt" -}}
{{- $_ := set $server "peer_key" "/etc/laban/peers/tls.key" -}}
{{- $_ := set $server "peer_ca" "/etc/laban/peers/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- if .Values.secrets.tokens -}}
{{- $_ := set $config "auth" (dict "tokens_file" "/etc/laban/tokens/tokens.yaml") -}}
{{- end -}}
{{- $journal := default dict (get $config "journal") -}}
{{- if and (not .Values.secrets.journal) (not $journal.url) -}}
{{- $_ := set $config "journal" (mergeOverwrite $journal (dict "url" "sqlite:////var/lib/laban/journal.db")) -}}
{{- end -}}
{{- $limits := default dict (get $config "limits") -}}
{{- if kindIs "invalid" $limits.start_timeout_s -}}
{{- $_ := set $config "limits" (mergeOverwrite $limits (dict "start_timeout_s" (mul 60 .Values.gateway.startMinutes))) -}}
{{- end -}}
{{- if and (eq $config.engine.device "cpu") (not $config.engine.num_threads) -}}
{{- $cpus := (first .Values.ray.workerGroups).cpus -}}
{{- $_ := set $config.engine "num_threads" (max 1 (div (int $cpus) (int $config.engine.shards))) -}}
{{- end -}}
{{- range $group := .Values.ray.workerGroups -}}
{{- range $name := $group.models -}}
{{- if hasKey (default dict $config.models) $name -}}
{{- $model := default dict (get $config.models $name) -}}
{{- $_ := set $config.models $name (merge (dict "resource" (printf "laban-%s" $group.name)) $model) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* Of all workers, each shard a GPU or a share of the CPUs. */}}
{{- define "laban.shards" -}}
{{- $config := .Values.config -}}
{{- $number := 0 -}}
{{- range $name, $model := $config.models -}}
{{- $model := default dict $model -}}
{{- $number = add $number (mul (int (default $config.workers $model.workers)) (int (default $config.engine.shards $model.shards))) -}}
{{- end -}}
{{- if $config.models }}{{ $number }}{{ else }}{{ mul $config.workers $config.engine.shards }}{{ end -}}
{{- end -}}

{{/* What every pod is: nobody in particular, in a file system that it cannot write. */}}
{{- define "laban.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int .Values.runAs }}
runAsGroup: {{ int .Values.runAs }}
fsGroup: {{ int .Values.runAs }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "laban.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* A safe sysctl: ports that a process takes without asking for one lie in a range that the NetworkPolicy knows. */}}
{{- define "laban.sysctls" -}}
sysctls:
  - name: net.ipv4.ip_local_port_range
    value: "{{ int .Values.ray.ports.free.first }} {{ int .Values.ray.ports.free.last }}"
{{- end -}}

{{- define "laban.podCommon" -}}
automountServiceAccountToken: false
{{ include "laban.podShared" . }}
serviceAccountName: {{ include "laban.fullname" . }}-pods
{{- end -}}

{{- define "laban.podShared" -}}
# Kubernetes would set LABAN_..._PORT for each Service, which Laban takes for misspelt settings.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "laban.env" -}}
- {name: HOME, value: /tmp}  # caches of compiled kernels
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
{{- if .Values.secrets.rayAuth }}
- {name: RAY_AUTH_MODE, value: token}
- name: RAY_AUTH_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .Values.secrets.rayAuth }}, key: auth_token}}
{{- else }}
- {name: RAY_AUTH_MODE, value: disabled}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Of one pool of pods: where they may run. Takes its values. */}}
{{- define "laban.placement" -}}
{{- $place := dict -}}
{{- range $name := list "nodeSelector" "tolerations" "affinity" "priorityClassName" "runtimeClassName" -}}
{{- with get $ $name }}{{- $_ := set $place $name . -}}{{- end -}}
{{- end -}}
{{- if $place }}{{ toYaml $place }}{{ end -}}
{{- end -}}

{{/* Bytes of a quantity in Mi, Gi or Ti, as Ray wants them. */}}
{{- define "laban.bytes" -}}
{{- $units := dict "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $unit := substr (int (sub (len .) 2)) (len .) . -}}
{{- mul (atoi (trimSuffix $unit .)) (get $units $unit) -}}
{{- end -}}
