#!/usr/bin/env bash
# Ray: whoever has once called ray.init() can't start a cluster of two nodes by `ray start` any more. FineScope isn't run.
#
# ray.init() of a cluster of this machine alone makes a token, ~/.ray/auth_token. From then on `ray start --head` finds it
# and asks for it; `ray start --address`, from the same home, doesn't look for it and is refused as InvalidAuthToken, after
# half a minute of trying, with the hint that RAY_AUTH_MODE is disabled. With RAY_AUTH_MODE=token for both, it joins. The
# guess was that both ends of one command, in one home, treat the token alike.
#
# Installs pinned public packages into a temporary folder, which is the home as well. Ends with 0 as long as ray 2.60.0
# does this, with 1 once it doesn't.
set -euo pipefail
folder=$(mktemp -d /tmp/ray-XXXXXX) # names of sockets must be short
nodes=()
finish() {
    for node in "${nodes[@]}"; do kill "$node" 2>/dev/null || true; done
    wait
    rm -rf "$folder"
}
trap finish EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0
export HOME="$folder" RAY_USAGE_STATS_ENABLED=0
unset RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH RAY_ADDRESS
bin="$folder/venv/bin"
"$bin/python" -c 'import ray, sys; print("python", sys.version.split()[0], "ray", ray.__version__)'

start() { # name, its options: waits until the node runs, or has ended
    "$bin/ray" start --block --num-cpus 1 --node-ip-address 127.0.0.1 "${@:2}" >"$folder/$1" 2>&1 &
    nodes+=($!)
    for _ in $(seq 180); do
        if grep -q "Ray runtime started" "$folder/$1"; then return 0; fi
        kill -0 "${nodes[-1]}" 2>/dev/null || return 1
        sleep 0.5
    done
    return 1
}
both() { # port, name: whether a second node joins
    start "$2-head" --head --port "$1" --include-dashboard false --temp-dir "$folder/$2-ray"
    if start "$2-second" --address "127.0.0.1:$1"; then answer=joined; else answer=refused; fi
    echo "$2: the second node is $answer $(grep -o InvalidAuthToken "$folder/$2-second" | sort -u)"
    for node in "${nodes[@]}"; do kill "$node" 2>/dev/null || true; done
    wait
    nodes=()
}
found=()
both 6391 before && found+=("$answer")
"$bin/python" -c 'import ray; ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)' >"$folder/local" 2>&1
echo "ray.init() has left: $(cd "$folder/.ray" && ls)"
both 6392 after && found+=("$answer")
export RAY_AUTH_MODE=token
both 6393 with-mode && found+=("$answer")
[ "${found[*]}" = "joined refused joined" ] || { echo "ray does something else now: ${found[*]}"; exit 1; }
