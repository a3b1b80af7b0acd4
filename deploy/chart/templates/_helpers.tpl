{{- define "dnf.name" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end -}}

{{- define "dnf.fullname" -}}
{{- $name := include "dnf.name" . -}}
{{- .Values.fullnameOverride | default (contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name)) | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "dnf.selector" -}}
app.kubernetes.io/name: {{ include "dnf.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dnf.labels" -}}
{{ include "dnf.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "dnf.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "dnf.fullname" .) "default") -}}
{{- end -}}

{{- define "dnf.image" -}}
{{- $tag := .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion (.Values.worker.gpu.enabled | ternary "cuda" "cpu")) -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ $tag }}{{ end -}}
{{- end -}}

{{/* The exporter needs no CUDA image. */}}
{{- define "dnf.exporterImage" -}}
{{- .Values.image.repository -}}
{{- if .Values.exporter.digest }}@{{ .Values.exporter.digest }}{{ else }}:{{ .Values.exporter.tag | default (printf "%s-cpu" .Chart.AppVersion) }}{{ end -}}
{{- end -}}

{{- define "dnf.podSecurity" -}}
runAsNonRoot: true
{{- if and .Values.podSecurityContext (not (.Capabilities.APIVersions.Has "security.openshift.io/v1")) }}
{{ toYaml .Values.podSecurityContext }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "dnf.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The URL comes from a Secret, never from the values. */}}
{{- define "dnf.redisEnv" -}}
- name: DNF_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.redis.secretName }}
      key: {{ .Values.redis.urlKey }}
{{- if include "dnf.redisCa" . }}
- name: DNF_REDIS_CA_FILE
  value: /redis-tls/ca.crt
{{- end }}
{{- if .Values.redis.tls.certificateSecretName }}
- name: DNF_REDIS_CERTIFICATE_FILE
  value: /redis-tls/tls.crt
- name: DNF_REDIS_KEY_FILE
  value: /redis-tls/tls.key
{{- end }}
{{- end -}}

{{- define "dnf.redisCa" -}}
{{- .Values.redis.tls.caSecretName | default .Values.redis.tls.caConfigMapName -}}
{{- end -}}

{{- define "dnf.redisTls" -}}
{{- .Values.redis.tls.certificateSecretName | default (include "dnf.redisCa" .) -}}
{{- end -}}

{{- define "dnf.redisTlsMount" -}}
{{- if include "dnf.redisTls" . }}
- name: redis-tls
  mountPath: /redis-tls
  readOnly: true
{{- end }}
{{- end -}}

{{/* Only the pod's group may read the key. */}}
{{- define "dnf.redisTlsVolume" -}}
{{- $tls := .Values.redis.tls }}
{{- if include "dnf.redisTls" . }}
- name: redis-tls
  projected:
    defaultMode: 0440
    sources:
      {{- if include "dnf.redisCa" . }}
      - {{ empty $tls.caSecretName | ternary "configMap" "secret" }}:
          name: {{ include "dnf.redisCa" . }}
          items:
            - {key: {{ $tls.caKey }}, path: ca.crt}
      {{- end }}
      {{- with $tls.certificateSecretName }}
      - secret:
          name: {{ . }}
          items:
            - {key: tls.crt, path: tls.crt}
            - {key: tls.key, path: tls.key}
      {{- end }}
{{- end }}
{{- end -}}

{{/* As the role that owns nothing. */}}
{{- define "dnf.databaseEnv" -}}
- name: DNF_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.secretName }}
      key: {{ .Values.database.urlKey }}
{{- end -}}

{{- define "dnf.storageEnv" -}}
- name: DNF_S3_REGION
  value: {{ .Values.s3.region | quote }}
{{- with .Values.s3.endpointUrl }}
- name: DNF_S3_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
- name: DNF_ALLOWED_BUCKETS
  value: {{ join "," .Values.s3.allowedBuckets | quote }}
{{- with .Values.s3.thumbnailBucket }}
- name: DNF_THUMBNAIL_BUCKET
  value: {{ . | quote }}
{{- end }}
{{- if .Values.s3.secretName }}
- name: DNF_S3_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef:
      name: {{ .Values.s3.secretName }}
      key: {{ .Values.s3.accessKeyIdKey }}
- name: DNF_S3_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ .Values.s3.secretName }}
      key: {{ .Values.s3.secretAccessKeyKey }}
{{- end }}
{{- end -}}

{{/* The detector reads bundles in S3 with boto3's own variables. */}}
{{- define "dnf.bundleEnv" -}}
- name: XDG_CACHE_HOME
  value: /cache
{{- if or (hasPrefix "s3://" .Values.detector.bundle) (hasPrefix "s3://" .Values.detector.shadowBundle) }}
- name: AWS_DEFAULT_REGION
  value: {{ .Values.s3.region | quote }}
{{- with .Values.s3.endpointUrl }}
- name: AWS_ENDPOINT_URL_S3
  value: {{ . | quote }}
{{- end }}
{{- if .Values.s3.secretName }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef:
      name: {{ .Values.s3.secretName }}
      key: {{ .Values.s3.accessKeyIdKey }}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ .Values.s3.secretName }}
      key: {{ .Values.s3.secretAccessKeyKey }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "dnf.settings" -}}
{{- range $name, $value := . }}
- name: DNF_{{ upper $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "dnf.bundleMounts" -}}
- name: tmp
  mountPath: /tmp
- name: cache
  mountPath: /cache
{{- if .Values.detector.volume }}
- name: bundles
  mountPath: /bundles
  readOnly: true
{{- end }}
{{- end -}}

{{/* Process number i of a pod serves on port + i. */}}
{{- define "dnf.portName" -}}
http{{ if gt (int .) 0 }}-{{ . }}{{ end }}
{{- end -}}

{{- define "dnf.processes" -}}
{{- .Values.worker.processes | default (.Values.worker.gpu.enabled | ternary .Values.worker.gpu.count 1) -}}
{{- end -}}

{{- define "dnf.s3Ports" -}}
{{- $url := urlParse (.Values.s3.endpointUrl | default "https://s3.amazonaws.com") -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (eq $url.scheme "http" | ternary "80" "443") -}}
{{- toJson (.Values.networkPolicy.s3Ports | default (list (int $port))) -}}
{{- end -}}

{{/* The labels by which alerts, dashboard and autoscaler tell fleets apart; the Prometheus operator adds the namespace. */}}
{{- define "dnf.fleetRelabelings" -}}
- {targetLabel: release, replacement: {{ .Release.Name }}}
{{- end -}}

{{- define "dnf.metricSelector" -}}
{{- $own := .Values.monitoring.serviceMonitor.enabled | ternary (printf "namespace=%q,release=%q" .Release.Namespace .Release.Name) "" -}}
{{- with .Values.autoscaling.metricSelector | default $own }}{{ printf "{%s}" . }}{{ end -}}
{{- end -}}
