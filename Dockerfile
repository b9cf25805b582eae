# docker build --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" -t keybearer .
# docker run --rm --network host -v "$PWD/config:/etc/keybearer:ro" -e CRM_CLIENT_SECRET keybearer
#
# Plain instructions only, so that any builder takes it (BuildKit, buildah, kaniko). Both stages are Debian 12: the
# binary meets the glibc it was linked with.

FROM rust:1.95-bookworm AS builder
WORKDIR /build
# The downloads stay cached until the lock changes; after them the build needs no network.
COPY Cargo.toml Cargo.lock ./
RUN cargo fetch --locked
COPY build.rs ./
COPY src src
# The context holds no .git: the build takes the revision from here.
ARG REVISION=unknown
ENV KEYBEARER_REVISION=${REVISION}
RUN cargo build --profile dist --locked --offline --bin keybearer

# No shell and no package manager; root certificates and time zones are in it.
FROM gcr.io/distroless/cc-debian12:nonroot
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Keybearer" \
      org.opencontainers.image.description="A sidecar proxy that injects fresh OAuth tokens, so that services hold no secret" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"
COPY LICENSE /usr/share/doc/keybearer/LICENSE
COPY --from=builder /build/target/dist/keybearer /usr/local/bin/keybearer

# By number: Kubernetes' runAsNonRoot cannot judge a name.
USER 65532:65532
# Mount the folder, so that what the file names beside itself (`include`, secrets, certificates) is there too.
ENV KEYBEARER_CONFIG=/etc/keybearer/keybearer.yaml
# proxy, admin, telemetry
EXPOSE 8080 8081 8082
ENTRYPOINT ["/usr/local/bin/keybearer"]
CMD ["run"]
