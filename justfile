# `just` lists the recipes. `just ci` is what CI runs.

default:
    @just --list

# Format everything.
fmt:
    cargo fmt --all

# Lint as CI does.
clippy:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# All tests, or those whose name contains the argument.
test *name:
    cargo test --workspace --locked -- {{ name }}

# Three nodes and an origin on this machine; `just demo --script` plays the tour by itself.
demo *options:
    cargo run --release --locked -- demo {{ options }}

# http-cache-tests through a node, counted by kind.
conformance *options:
    scripts/conformance {{ options }}

# Licences, bans and advisories of all dependencies; needs cargo-deny.
deny:
    cargo deny --locked check

# Everything that CI runs, in its order.
ci:
    scripts/test
