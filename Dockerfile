# syntax=docker/dockerfile:1
# Images of a caje node and of `caje`, the operator's command. `docker build .` makes `runtime`, a node without LiteFS;
# `--target runtime-litefs` adds it, and LiteFS then starts the node as its child.

# The toolchain that the workspace is held to (Cargo.toml: rust-version).
FROM rust:1.95-bookworm AS chef
RUN cargo install cargo-chef --locked --version 0.1.78
WORKDIR /src

# What the workspace depends on, in a file that changes only when that does.
FROM chef AS planner
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS builder
COPY --from=planner /src/recipe.json recipe.json
# A layer that stays for as long as the recipe does: all dependencies.
RUN cargo chef cook --release --locked --package caje-node --bin caje-node --package caje --bin caje --recipe-path recipe.json
COPY . .
# Stripped of lines of code, a quarter is left; the names of functions stay, for backtraces.
RUN cargo build --release --locked --package caje-node --bin caje-node --package caje --bin caje \
 && mkdir -p /out/cache/caje /out/lib/caje/manifest \
 && strip --strip-debug -o /out/caje-node target/release/caje-node \
 && strip --strip-debug -o /out/caje target/release/caje

FROM flyio/litefs:0.5 AS litefs

# A node and LiteFS. It runs as root and needs /dev/fuse: LiteFS mounts a file system.
FROM debian:bookworm-slim AS runtime-litefs
# ca-certificates: Fly.io's Consul is asked over TLS. fuse3: fusermount3.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates fuse3 \
 && rm -rf /var/lib/apt/lists/* \
 && mkdir -p /data /litefs
COPY --link --from=litefs /usr/local/bin/litefs /usr/local/bin/litefs
COPY --link --from=builder /out/caje-node /out/caje /usr/local/bin/
COPY --link deploy/litefs.fly.yml /etc/litefs.yml
ENV CAJE_CONFIG=/etc/caje/caje.toml
EXPOSE 8080 9180 20202
STOPSIGNAL SIGTERM
ENTRYPOINT ["litefs", "mount"]

# A node alone: two binaries, the C library and nothing else; not root.
FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
COPY --link --from=builder /out/caje-node /out/caje /usr/local/bin/
# The folders that volumes are mounted on belong to the node: a new volume takes its owner from them.
COPY --from=builder --chown=65532:65532 /out/cache/ /var/cache/
COPY --from=builder --chown=65532:65532 /out/lib/ /var/lib/
ENV CAJE_CONFIG=/etc/caje/caje.toml
VOLUME ["/var/cache/caje"]
EXPOSE 8080 9180
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/caje-node"]
CMD ["run"]
