{{- define "pars.labels" -}}
app.kubernetes.io/name: pars
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pars.container" -}}
- name: pars
  image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if eq .Values.mode "ext-proc" }}
  # A sidecar in Kubernetes' sense: it starts before Envoy and ends after it.
  restartPolicy: Always
  args:
    - ext-proc
    - --metrics-host
    - "0.0.0.0"
    - --metrics-port
    - "9003"
    {{- range .Values.args }}
    - {{ . | quote }}
    {{- end }}
  {{- else }}
  args:
    - gateway
    - --host
    - "0.0.0.0"
    {{- if eq .Values.mode "sidecar" }}
    - --upstream
    - http://127.0.0.1:8000
    {{- else }}
    {{- range .Values.upstreams }}
    - --upstream
    - {{ . | quote }}
    {{- end }}
    {{- end }}
    - --drain-s
    - {{ .Values.drainSeconds | quote }}
    - --log-format
    - json
    {{- range .Values.args }}
    - {{ . | quote }}
    {{- end }}
  {{- end }}
  env:
    - name: PARS_STATE
      value: /var/lib/pars
    {{- if eq .Values.mode "ext-proc" }}
    - name: PARS_LOG_FORMAT
      value: json
    {{- end }}
    {{- if and (ne .Values.mode "sidecar") (gt (int .Values.replicas) 1) }}
    - name: PARS_SHARED_ENGINE
      value: "1"
    {{- end }}
    {{- with .Values.secrets.apiKeys }}
    - name: PARS_API_KEYS
      valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: api-keys}}
    {{- end }}
    {{- with .Values.secrets.adminKey }}
    - name: PARS_ADMIN_KEY
      valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: admin-key}}
    {{- end }}
    {{- if .Values.secrets.upstreamKey }}
    - name: PARS_UPSTREAM_API_KEY_FILE
      value: /etc/pars/upstream-key
    {{- end }}
    {{- with .Values.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if eq .Values.mode "ext-proc" }}
  ports:
    - {name: metrics, containerPort: 9003}
  livenessProbe:
    httpGet: {path: /metrics, port: metrics}
    periodSeconds: 10
    timeoutSeconds: 3
  {{- else }}
  ports:
    - {name: http, containerPort: 8100}
  # A new container helps a process that does not answer, and no engine that does not.
  livenessProbe:
    httpGet: {path: /pars/live, port: http}
    periodSeconds: 10
    timeoutSeconds: 3
  readinessProbe:
    httpGet: {path: /pars/ready, port: http}
    periodSeconds: 5
    timeoutSeconds: 5
  lifecycle:
    preStop:
      sleep: {seconds: 5}  # until nobody sends requests here any more
  {{- end }}
  {{- include "pars.unprivileged" . | nindent 2 }}
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  volumeMounts:
    - {name: state, mountPath: /var/lib/pars}
    {{- if .Values.secrets.upstreamKey }}
    - {name: upstream-key, mountPath: /etc/pars, readOnly: true}
    {{- end }}
{{- end }}

{{- define "pars.unprivileged" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "pars.envoy" -}}
- name: envoy
  image: {{ .Values.envoy.image | quote }}
  command: [envoy]
  args: [-c, /etc/envoy/envoy.yaml, --disable-hot-restart]
  ports:
    - {name: http, containerPort: 8100}
  livenessProbe:
    tcpSocket: {port: http}
    periodSeconds: 10
  readinessProbe:
    tcpSocket: {port: http}
    periodSeconds: 5
  lifecycle:
    preStop:
      sleep: {seconds: {{ .Values.drainSeconds }}}  # Envoy breaks streams off when it is told to stop
  {{- include "pars.unprivileged" . | nindent 2 }}
  resources:
    {{- toYaml .Values.envoy.resources | nindent 4 }}
  volumeMounts:
    - {name: envoy, mountPath: /etc/envoy, readOnly: true}
{{- end }}

{{- define "pars.volumes" -}}
- name: state
  {{- if .Values.stateClaim }}
  persistentVolumeClaim: {claimName: {{ .Values.stateClaim | quote }}}
  {{- else }}
  emptyDir: {sizeLimit: 256Mi}
  {{- end }}
{{- with .Values.secrets.upstreamKey }}
- name: upstream-key
  secret: {secretName: {{ . | quote }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "pars.vllm" -}}
# A sidecar, so it ends after the gateway, whose streams end first.
- name: vllm
  image: {{ .Values.vllm.image | quote }}
  restartPolicy: Always
  command: [vllm, serve]
  args:
    - {{ .Values.vllm.model | quote }}
    - --port
    - "8000"
    - --scheduling-policy
    - priority
    {{- range .Values.vllm.args }}
    - {{ . | quote }}
    {{- end }}
  {{- with .Values.vllm.env }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - {name: engine, containerPort: 8000}
  startupProbe:
    httpGet: {path: /health, port: engine}
    periodSeconds: 10
    failureThreshold: {{ div (int .Values.vllm.startSeconds) 10 }}
  livenessProbe:
    httpGet: {path: /health, port: engine}
    periodSeconds: 10
    timeoutSeconds: 10
    failureThreshold: 6
  readinessProbe:
    httpGet: {path: /health, port: engine}
    periodSeconds: 5
    timeoutSeconds: 5
  resources:
    {{- toYaml .Values.vllm.resources | nindent 4 }}
  volumeMounts:
    - {name: shm, mountPath: /dev/shm}
    - {name: cache, mountPath: /root/.cache}
{{- end }}

{{- define "pars.vllmVolumes" -}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.vllm.sharedMemory }}}
- name: cache
  {{- if .Values.vllm.cacheClaim }}
  persistentVolumeClaim: {claimName: {{ .Values.vllm.cacheClaim | quote }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}
