# Sourced by the scripts beside it: a folder for the run, the programs to run in it, and their end.
target=${CARGO_TARGET_DIR:-target}
node=$target/release/caje-node
[ -x "$node" ] || { echo "build first: cargo build --release" >&2; exit 2; }
work=$(mktemp -d)
chmod 755 "$work" # nginx's workers are another user
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
await() { # FILE: the first address a program has printed
  local found= tries=0
  while [ -z "$found" ]; do
    found=$(grep -om1 'listening http://[0-9.:]*' "$1" | cut -d' ' -f2 || true)
    tries=$((tries + 1))
    [ "$tries" -lt 20000 ] || { cat "$1" >&2; exit 1; }
  done
  echo "$found"
}
"$node" slow-server --listen 127.0.0.1:0 >"$work/origin.out" &
pids+=($!)
origin=$(await "$work/origin.out")
