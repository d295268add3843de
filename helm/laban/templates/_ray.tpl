{{/* The ports of every Ray node, as `ray start` names them. */}}
{{- define "laban.rayPorts" -}}
{{- with .Values.ray.ports -}}
node-manager-port: {{ int .nodeManager | quote }}
object-manager-port: {{ int .objectManager | quote }}
runtime-env-agent-port: {{ int .runtimeEnvAgent | quote }}
dashboard-agent-grpc-port: {{ int .agentGrpc | quote }}
dashboard-agent-listen-port: {{ int .agentHttp | quote }}
metrics-export-port: {{ int .metrics | quote }}
min-worker-port: {{ int .processes.first | quote }}
max-worker-port: {{ int .processes.last | quote }}
{{- end -}}
{{- end -}}

{{- define "laban.rayFlags" -}}
{{- $flags := list -}}
{{- range $name, $port := fromYaml (include "laban.rayPorts" .) -}}
{{- $flags = append $flags (printf "--%s=%s" $name $port) -}}
{{- end -}}
{{- join " " $flags -}}
{{- end -}}

{{/* The same for containers; ranges cannot be declared there, and are in the NetworkPolicy. */}}
{{- define "laban.rayContainerPorts" -}}
{{- with .Values.ray.ports -}}
- {name: node-manager, containerPort: {{ int .nodeManager }}}
- {name: object-manager, containerPort: {{ int .objectManager }}}
- {name: runtime-env, containerPort: {{ int .runtimeEnvAgent }}}
- {name: agent-grpc, containerPort: {{ int .agentGrpc }}}
- {name: agent-http, containerPort: {{ int .agentHttp }}}
{{- end -}}
{{- end -}}

{{/* Without its replicas, a change of which must not make another cluster. */}}
{{- define "laban.rayPodsHash" -}}
{{- $ray := deepCopy .Values.ray -}}
{{- $groups := list -}}
{{- range $ray.workerGroups -}}
{{- $groups = append $groups (omit . "minReplicas" "maxReplicas") -}}
{{- end -}}
{{- $_ := set $ray "workerGroups" $groups -}}
{{- $_ := set $ray "autoscaling" (pick $ray.autoscaling "enabled") -}}
{{- list $ray (include "laban.image" .) .Values.model .Values.secrets .Values.extraEnv .Values.runAs .Values.podLabels .Values.podAnnotations .Values.topologySpread .Values.config.model .Values.config.engine.device | toJson | sha256sum | trunc 8 -}}
{{- end -}}

{{/* KubeRay leaves the pods of a cluster as they are when its templates change: what changes them makes a new cluster. */}}
{{- define "laban.rayCluster" -}}
{{ include "laban.fullname" . }}-{{ include "laban.rayPodsHash" . }}
{{- end -}}

{{- define "laban.rayHead" -}}
{{ include "laban.rayCluster" . }}-head-svc
{{- end -}}

{{- define "laban.scratchMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- end -}}

{{/* Takes the size of Ray's object store, which lies in shared memory; the rest is for NCCL. */}}
{{- define "laban.scratchVolumes" -}}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ add (include "laban.bytes" .) 1073741824 }}}
{{- end -}}

{{/* Of the node's own agent, which answers for its raylet; ready is what `path` and `port` say. */}}
{{- define "laban.rayProbes" -}}
startupProbe:
  httpGet: {path: /api/local_raylet_healthz, port: agent-http}
  periodSeconds: 5
  failureThreshold: 60
readinessProbe:
  httpGet: {path: {{ .path }}, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
livenessProbe:
  httpGet: {path: /api/local_raylet_healthz, port: agent-http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 12
{{- end -}}
