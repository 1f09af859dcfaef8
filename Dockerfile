# syntax=docker/dockerfile:1
# Two images from one lock: `--target gateway` and `--target worker`.
#   docker build --target gateway -t cocoon-gateway .

FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/cocoon
# Dependencies first: they change less often than the code. --require-hashes refuses what the lock does not name.
COPY requirements.lock /src/
RUN /opt/cocoon/bin/pip install --require-hashes -r /src/requirements.lock
COPY deploy/build.lock /src/
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r /src/build.lock
COPY pyproject.toml README.md LICENSE /src/
COPY attestation /src/attestation
COPY audit /src/audit
COPY billing /src/billing
COPY cli /src/cli
COPY cocoon /src/cocoon
COPY cocoon_client /src/cocoon_client
COPY gateway /src/gateway
COPY migrations /src/migrations
COPY workers /src/workers
RUN cd /src && /opt/build/bin/python -m hatchling build -t wheel -d /src/dist \
 && /opt/cocoon/bin/pip install --no-deps --no-index /src/dist/*.whl

FROM python:3.12-slim AS base
RUN groupadd --gid 10001 cocoon \
 && useradd --uid 10001 --gid cocoon --create-home --shell /usr/sbin/nologin cocoon
COPY --from=build /opt/cocoon /opt/cocoon
ENV PATH=/opt/cocoon/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /home/cocoon

FROM base AS gateway
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["cocoon"]
CMD ["gateway"]

# The embedded CPU engine needs a model; this one is small and free. An attached engine leaves it unused.
FROM base AS worker
COPY requirements-model.lock /tmp/
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
 && /opt/cocoon/bin/pip install --no-cache-dir --no-deps --require-hashes -r /tmp/requirements-model.lock \
 && install -d -m 0700 -o 10001 -g 10001 /var/lib/cocoon
USER 10001:10001
EXPOSE 8443
STOPSIGNAL SIGTERM
ENTRYPOINT ["cocoon"]
CMD ["worker"]
