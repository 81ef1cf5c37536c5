FROM rust:1.95-slim-bookworm AS build
# SQLite and the TLS library are C.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN cargo build --release --locked --bin recording-gateway

FROM debian:bookworm-slim
# Supabase is reached with the system's certificates.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin gateway \
 && install -d -o 10001 -g 10001 /data /data/recordings
COPY --from=build /build/target/release/recording-gateway /usr/local/bin/recording-gateway
USER 10001
# .env and config/default.toml are looked for here.
WORKDIR /data
ENV GATEWAY_SERVER__HOST=0.0.0.0 \
    GATEWAY_STORAGE__LOCAL_DIR=/data/recordings
VOLUME /data/recordings
EXPOSE 8000
# Fails when no gateway answers; what it says about disk and cloud is at /readyz.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s \
  CMD ["recording-gateway", "check", "--running"]
ENTRYPOINT ["recording-gateway"]
CMD ["serve"]
