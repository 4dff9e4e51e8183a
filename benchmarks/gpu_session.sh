#!/usr/bin/env bash
# Runs everything that needs a GPU, within a quarter of an hour: docs/gpu.md.
# Each part has its own time limit and log, so a part that fails or hangs costs no other part.
set -uo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
self=$repository/benchmarks/$(basename "${BASH_SOURCE[0]}")
python=${PYTHON:-python3} verify_seconds=${VERIFY_SECONDS:-30}

usage() {
    cat <<'END'
usage: gpu_session.sh [OPTION ...] OUT       run all parts; OUT: a folder, new or empty, for logs and figures
       gpu_session.sh --split WHEEL DIR      cut a wheel into parts that travel one by one, with their SHA-256

  --rehearse       on a host without a GPU: run every part up to its first CUDA call
  --parts DIR      put cut wheels together, and install all wheels of DIR without a registry (into WORK, not the host's)
  --only A,B       these parts alone
  --minutes N      start nothing after N minutes, and let nothing run longer (default: 15)
  --work DIR       keep wheels and bundles here, for the next session (default: ~/.cache/sem-clip-gpu-session)
  --tiny BUNDLE    a bundle of the embedded encoder (default: built in WORK)
  --full BUNDLE    a bundle of --arch (default: built in WORK, with random weights)
  --arch NAME      architecture of the full-size bundle (default: vit_b_16_plus_240)

parts, in this order, and seconds each may take (environment: LIMIT_TESTS=300, LIMIT_VERIFY_TINY=60, ...):
  install 120, facts 60, tiny-bundle 180, verify-tiny 120, tests 240, full-bundle 300, engines 180, verify-full 180,
  benchmark 240, benchmark-compiled 300, second-gpu 90
environment: PYTHON, the interpreter (default: python3); PART_MB, size of the parts of --split (default: 48);
VERIFY_SECONDS, for what `sem-clip verify` times (default: 30)
exit status: 0 each part passed, was rehearsed or was not possible; 1 one failed or timed out, or none needed the GPU
and passed; 2 wrong usage
END
}

die() {
    echo "gpu_session.sh: $*" >&2
    exit 2
}

# ---- wheels in parts ----------------------------------------------------------------------------------------------

split_wheel() { # WHEEL DIR
    local wheel=$1 folder=$2 name
    name=$(basename "$wheel")
    [[ -f $wheel && $name == *.whl ]] || die "$wheel is no wheel"
    mkdir -p "$folder" || exit 2
    compgen -G "$folder/$name.part-*" >/dev/null && die "$folder holds parts of $name already: remove them first"
    split --bytes="${PART_MB:-48}M" --numeric-suffixes --suffix-length=3 "$wheel" "$folder/$name.part-" || exit 1
    (cd "$folder" && sha256sum "$name".part-*) >"$folder/$name.parts.sha256" || exit 1
    (cd "$(dirname "$wheel")" && sha256sum "$name") >"$folder/$name.sha256" || exit 1
    ls -l "$folder/$name".*
}

join_wheels() { # DIR WHEELS: what was cut, from DIR to WHEELS; fails where a part is missing or damaged
    local folder=$1 wheels=$2 sums name
    for sums in "$folder"/*.whl.parts.sha256; do
        [[ -e $sums ]] || continue
        name=$(basename "$sums" .parts.sha256)
        # The parts' names are those that --split gives: a list from elsewhere must not lead out of the folder.
        grep -qvE "^[0-9a-f]{64} [ *]${name//./\\.}\.part-[0-9]{3}$" "$sums" && {
            echo "$sums is no list of parts of $name"
            return 1
        }
        if ! (cd "$folder" && sha256sum --check --quiet "$name.parts.sha256"); then
            echo "$name is not whole: bring the parts named above again"
            return 1
        fi
        cut -c67- "$sums" | (cd "$folder" && xargs -d '\n' cat --) >"$wheels/$name" || return 1
        if ! (cd "$wheels" && sha256sum --check --quiet "$(realpath "$folder")/$name.sha256"); then
            echo "$name was put together and is not the wheel that was cut"
            return 1
        fi
    done
    for sums in "$folder"/*.whl.part-*; do
        [[ -e $sums && ! -e ${sums%.part-*}.parts.sha256 ]] || continue
        echo "$sums has no $(basename "${sums%.part-*}").parts.sha256 next to it: bring that too"
        return 1
    done
}

install_wheels() { # DIR SITE: all wheels of DIR, and this project where it is not installed, for PYTHONPATH=SITE
    local folder=$1 site=$2 wheels
    wheels=$site.wheels
    rm -rf "$wheels" && mkdir -p "$wheels" "$site" || return 1
    if [[ -n $folder ]]; then
        join_wheels "$folder" "$wheels" || return 1
        for wheel in "$folder"/*.whl; do [[ -e $wheel ]] && ln -s "$(realpath "$wheel")" "$wheels/"; done
    fi
    local pip=("$python" -m pip install --no-index --no-deps --no-compile --disable-pip-version-check)
    pip+=(--upgrade --target "$site")
    if compgen -G "$wheels/*.whl" >/dev/null; then
        "${pip[@]}" "$wheels"/*.whl || return 1
    fi
    # Its commands are found by what an installation records; the code that runs is that of this folder.
    "$python" -c 'from importlib.metadata import version; version("sem-clip")' 2>/dev/null ||
        "${pip[@]}" --no-build-isolation "$repository" || return 1
    "$python" -m pip list --disable-pip-version-check
}

build_engines() { # PRODUCTS BUNDLE...: an engine of each product for each bundle, for the GPU here
    local products=$1 failed=0 bundle product
    shift
    for bundle in "$@"; do
        for product in $products; do
            "$python" sem_clip.py build-engine "$bundle" --engine "$product" || failed=1
        done
    done
    return $failed
}

# ---- parts --------------------------------------------------------------------------------------------------------

declare -A default_limit=(
    [install]=120 [facts]=60 [tiny-bundle]=180 [verify-tiny]=120 [tests]=240 [full-bundle]=300 [engines]=180
    [verify-full]=180 [benchmark]=240 [benchmark-compiled]=300 [second-gpu]=90
)
declare -A obstacle=()
failed=0 passed_on_gpu=0 running="" began_part=0

wanted() { [[ -z $only || ,$only, == *",$1,"* ]]; }

limit_of() { # PART: its limit in seconds, and no more than the session has left; 0 where that is nothing
    local variable=LIMIT_${1//-/_} limit left
    variable=${variable^^}
    limit=${!variable:-${default_limit[$1]}}
    left=$((minutes * 60 - SECONDS))
    echo $((left < 5 ? 0 : limit < left ? limit : left))
}

last_line() { # FILE: the last line that is not blank, fit for a terminal and for a table
    grep -v '^[[:space:]]*$' "$1" | tail -n 1 | tr -cd '[:print:]' | cut -c1-300
}

record() { # PART OUTCOME STATUS SECONDS WHY
    printf '%s\t%s\t%s\t%s\t%s\n' "$@" >>"$out/summary.tsv"
    printf '%-20s %-12s %5ss  %s\n' "$1" "$2" "$4" "$5"
}

part() { # PART REASON COMMAND...: run it, or record the reason why it is not possible. Leaves its status in $status.
    local name=$1 reason=$2 limit outcome why
    shift 2
    status=0
    wanted "$name" || return 0
    limit=$(limit_of "$name")
    ((limit)) || reason="the session's $minutes minutes are over"
    if [[ -n $reason ]] && { [[ $rehearse == no ]] || [[ $reason != "${obstacle[gpu]:-}" ]]; }; then
        record "$name" "not possible" - 0 "because $reason"
        status=-
        return 0
    fi
    began_part=$SECONDS
    # In the background: bash then hears signals while it waits. timeout ends the whole group of processes.
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1 </dev/null &
    running=$! running_name=$name
    wait "$running" || status=$?
    running=""
    why=$(last_line "$out/$name.log")
    if ((status == 124)) || { ((status == 137)) && ((SECONDS - began_part >= limit)); }; then
        outcome="timed out" why="after $limit s; last: $why"
        failed=1
    elif [[ -n $reason ]] && { ((status == 0)) || grep -qF -- "$reason" "$out/$name.log"; }; then
        outcome=rehearsed
    elif ((status == 0)); then
        outcome=passed
        [[ -n ${needs_gpu[$name]:-} ]] && passed_on_gpu=1
    else
        outcome=failed
        failed=1
    fi
    record "$name" "$outcome" "$status" "$((SECONDS - began_part))" "$why"
}
declare -A needs_gpu=([tests]=1 [benchmark]=1 [benchmark-compiled]=1) # `verify` may qualify the CPU alone

without_bundle() { # BUNDLE: why a part that needs it and a GPU is not possible; nothing where it is
    if [[ ! -e $1/manifest.json ]]; then
        echo "there is no bundle at $1"
    else
        echo "${obstacle[gpu]}"
    fi
}

read_facts() { # the reasons that `facts` printed
    local name reason
    while IFS='=' read -r name reason; do
        obstacle[$name]=$reason
    done < <(grep -E '^(project|gpu|second-gpu|cuda|tensorrt|tensorrt-rtx)=' "$out/facts.log" 2>/dev/null)
    [[ -v obstacle[gpu] ]] || obstacle[gpu]="what this host has could not be found: see facts.log"
    [[ -v obstacle[second-gpu] ]] || obstacle[second-gpu]=${obstacle[gpu]}
}

summary() {
    {
        echo "GPU session of $(date -u +%Y-%m-%dT%H:%M:%SZ), $SECONDS s, $(hostname)"
        [[ $rehearse == yes ]] && echo "A rehearsal: no figure here is of a GPU."
        local name
        for name in gpu cuda tensorrt tensorrt-rtx; do
            [[ -n ${obstacle[$name]:-} ]] && echo "no $name: ${obstacle[$name]}"
        done
        echo
        awk -F'\t' '{ printf "%-20s %-12s status %-4s %5s s  %s\n", $1, $2, $3, $4, $5 }' "$out/summary.tsv"
    } >"$out/summary.txt"
    (cd "$out" && tar -czf session.tar.gz --exclude=session.tar.gz -- *)
    echo
    cat "$out/summary.txt"
    echo "all of it in one file: $out/session.tar.gz"
}

# shellcheck disable=SC2317  # called by a trap
interrupted() {
    if [[ -n $running ]]; then
        kill -TERM "$running" 2>/dev/null
        record "$running_name" interrupted - "$((SECONDS - began_part))" "the session was ended from outside"
    fi
    summary
    exit 143
}

session() {
    cd "$repository" || exit 2
    : >"$out/summary.tsv"
    trap interrupted INT TERM HUP
    export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHON=$python
    nvidia-smi -q >"$out/nvidia-smi.txt" 2>&1 || echo "nvidia-smi: not here, or failed" >>"$out/nvidia-smi.txt"

    part install "" bash "$self" --install "$parts" "$work/site"
    only=${only:+$only,facts} part facts "" "$python" -m benchmarks.gpu_facts "$out/facts.json"
    read_facts

    [[ -e $tiny/manifest.json ]] || part tiny-bundle "${obstacle[project]:-}" \
        "$python" sem_clip.py build --shots 2 --views 1 --support-cache none --out "$tiny"
    part verify-tiny "$(without_bundle "$tiny")" \
        "$python" sem_clip.py verify "$tiny" --time "$verify_seconds" --json "$out/verify-tiny.json"
    mapfile -t marked < <(grep -rl --include='test_*.py' 'mark\.gpu' tests)
    # Warnings are no errors here: the host's packages are not of chosen versions.
    part tests "${obstacle[gpu]}" \
        "$python" -m pytest -m gpu -q -p no:cacheprovider -o filterwarnings=default "${marked[@]}"

    [[ -e $full/manifest.json ]] || part full-bundle "${obstacle[project]:-}" \
        "$python" sem_clip.py build --arch "$arch" --random-weights --shots 1 --views 1 --support-cache none --out "$full"
    local products="" why="" name bundles=()
    for name in tensorrt tensorrt-rtx; do
        if [[ -z ${obstacle[$name]-unknown} ]]; then products+=" $name"; else why=${why:-${obstacle[$name]:-unknown}}; fi
    done
    for name in "$tiny" "$full"; do [[ -e $name/manifest.json ]] && bundles+=("$name"); done
    [[ -n $products ]] && why=""
    # Without a GPU, what is rehearsed is the refusal of the builder that is there.
    part engines "$why" bash "$self" --engines "${products:- tensorrt-rtx}" "${bundles[@]}"
    part verify-full "$(without_bundle "$full")" \
        "$python" sem_clip.py verify "$full" --time "$verify_seconds" --json "$out/verify-full.json"
    local measure=("$python" -m benchmarks.gpu "$full" --arch "$arch" --random-weights --latency-seconds 5)
    part benchmark "$(without_bundle "$full")" \
        "${measure[@]}" --no-compile --batch 1,8,32,64,128 --rounds 5 --out "$out/benchmark"
    part benchmark-compiled "$(without_bundle "$full")" \
        "${measure[@]}" --batch 1,64 --rounds 3 --out "$out/benchmark-compiled"
    # The part "tests" has run both GPUs at once; this one proves the engines on the second alone.
    part second-gpu "${obstacle[second-gpu]:-$(without_bundle "$tiny")}" \
        "$python" sem_clip.py verify "$tiny" --device 1 --time "$verify_seconds" --json "$out/verify-second.json"
    nvidia-smi >>"$out/nvidia-smi.txt" 2>&1 || true
    summary
    ((failed)) && exit 1
    [[ $rehearse == yes ]] || ((passed_on_gpu)) || [[ -n $only ]] || exit 1
    exit 0
}

rehearse=no parts="" only="" minutes=15 tiny="" full="" out=""
arch=vit_b_16_plus_240 work=${XDG_CACHE_HOME:-$HOME/.cache}/sem-clip-gpu-session
while (($#)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --split) [[ $# == 3 ]] || die "--split takes a wheel and a folder" && split_wheel "$2" "$3" && exit 0 ;;
    --install) install_wheels "$2" "$3" && exit 0 || exit 1 ;;
    --engines) build_engines "${@:2}" && exit 0 || exit 1 ;;
    --rehearse) rehearse=yes ;;
    --parts | --only | --minutes | --work | --tiny | --full | --arch)
        [[ $# -ge 2 ]] || die "$1 takes a value"
        printf -v "${1#--}" '%s' "$2"
        shift
        ;;
    -*) die "there is no option $1: see --help" ;;
    *)
        [[ -z $out ]] || die "one folder for the results, not $out and $1"
        out=$1
        ;;
    esac
    shift
done
[[ -n $out ]] || { usage >&2 && exit 2; }
[[ $minutes =~ ^[1-9][0-9]{0,3}$ ]] || die "--minutes takes whole minutes, not $minutes"
for name in ${only//,/ }; do [[ -n ${default_limit[$name]:-} ]] || die "there is no part $name: see --help"; done
[[ -z $parts || -d $parts ]] || die "--parts: there is no folder $parts"
command -v "$python" >/dev/null || die "there is no $python: name one with PYTHON="
mkdir -p "$out" "$work" || exit 2
[[ -z $(ls -A "$out") ]] || die "$out is not empty: name a new folder"
out=$(realpath "$out") work=$(realpath "$work") tiny=$(realpath -m "${tiny:-$work/sem_tiny}")
full=$(realpath -m "${full:-$work/$arch}") parts=${parts:+$(realpath "$parts")}
[[ $python == */* ]] && python=$(realpath -s "$python")
session
