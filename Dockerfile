# pars in a container: the gateway, and every other command that needs no torch.
#
#     docker build -t pars .
#     docker run --read-only --cap-drop ALL -v pars-state:/var/lib/pars -p 127.0.0.1:8100:8100 \
#         pars gateway --host 0.0.0.0 --upstream http://ENGINE:8000
#
# BASE is any image with Python 3.11 or later as python3, glibc, and the venv module.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN python3 -m venv /opt/pars \
    && /opt/pars/bin/pip install --no-cache-dir --disable-pip-version-check '/src[envoy]' \
    && /opt/pars/bin/pip uninstall --yes pip setuptools

FROM ${BASE}
COPY --from=build /opt/pars /opt/pars
# What is learned is all that is written; the root may be read-only.
RUN install -d -o 65532 -g 65532 -m 0700 /var/lib/pars
ENV PATH=/opt/pars/bin:${PATH} \
    PARS_STATE=/var/lib/pars \
    PYTHONDONTWRITEBYTECODE=1
VOLUME /var/lib/pars
USER 65532:65532
EXPOSE 8100
# Whether the process answers, and not whether the engine does: a new container would not help that.
# The gateway's port; give others --no-healthcheck. (http.client asks no proxy.)
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python3", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8100, timeout=2); c.request('GET', '/pars/live'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["pars"]
CMD ["--help"]
