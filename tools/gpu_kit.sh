#!/usr/bin/env bash
# Everything that a GPU is to be asked, on a machine that has Python, torch and no network.
#
#   tools/gpu_kit.sh pack WHEELS [PRESENT]      here: the wheels that the machine lacks
#   tools/gpu_kit.sh run WHEELS OUT [--minutes 25]   there, in a copy of this repository
#
# pack takes what requirements.lock says, hashes checked, without torch and what comes with it. PRESENT
# is a file of `pip list --format=freeze` of the machine: what it names is left out. The machine's
# Python and platform are those of PACK_PYTHON (3.12) and x86_64 Linux. pack needs uv, which `make
# install` brings.
# run puts the wheels into OUT/site, beside what is installed, and starts tools/gpu_kit.py, whose
# options may follow; `--tiny` rehearses without a GPU. PYTHON names the interpreter of either.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  sed -n '4,5s/^# *//p' "$root/tools/gpu_kit.sh" >&2
  exit 2
}

pack() {
  local wheels=$1 present=${2:-/dev/null} python=${PYTHON:-$root/.venv/bin/python}
  local version=${PACK_PYTHON:-3.12} glibc
  local -a platforms=()
  for glibc in 2_28 2_27 2_26 2_24 2_17 2_12 2_5; do
    platforms+=(--platform "manylinux_${glibc}_x86_64")
  done
  for glibc in manylinux2014 manylinux2010 manylinux1; do
    platforms+=(--platform "${glibc}_x86_64")
  done
  mkdir -p -- "$wheels"
  { python3 "$root/docker/list_requirements.py" "$root/setup.cfg"; printf '%s\n' pytest hypothesis; } \
    > "$wheels/wanted.txt"
  "$python" -m uv pip compile -q "$wheels/wanted.txt" -c "$root/requirements.lock" \
    --python-version "$version" --python-platform x86_64-manylinux_2_28 --generate-hashes \
    --no-annotate --no-header -o "$wheels/all.txt"
  # A block is a line NAME==VERSION and the hashes below it.
  awk -F '==' '
    FILENAME == ARGV[1] { name = tolower($1); gsub(/[_.]/, "-", name); present[name]; next }
    /^[a-z0-9]/ {
      keep = !($1 in present) && $1 !~ /^(torch|triton|setuptools|nvidia-.*|cuda-.*)$/
    }
    keep' "$present" "$wheels/all.txt" > "$wheels/packed.txt"
  "$python" -m pip download -q --disable-pip-version-check --require-hashes --no-deps \
    --only-binary :all: --implementation cp --python-version "$version" "${platforms[@]}" \
    -r "$wheels/packed.txt" -d "$wheels"
  du -sh -- "$wheels"
}

run() {
  local wheels=$1 out=$2 python=${PYTHON:-python3}
  shift 2
  mkdir -p -- "$out"
  out=$(cd -- "$out" && pwd)
  if [[ ! -d $out/site ]]; then
    rm -rf -- "$out/site.new"
    mkdir -- "$out/site.new"
    if compgen -G "$wheels/*.whl" > /dev/null; then
      "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-cache-dir \
        --no-compile --target "$out/site.new" "$wheels"/*.whl
    fi
    mv -- "$out/site.new" "$out/site"
  fi
  export PYTHONPATH="$root:$out/site${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TQDM_DISABLE=1
  cd -- "$root"
  exec "$python" tools/gpu_kit.py --out "$out" "$@"
}

case ${1:-} in
  pack) (($# == 2 || $# == 3)) || usage ;;
  run) (($# >= 3)) || usage ;;
  *) usage ;;
esac
"$@"
