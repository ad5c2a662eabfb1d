#!/usr/bin/env bash
# What this project does on a GPU, in at most nine minutes: one command, nothing to prepare, nothing fetched.
#
#   benchmarks/gpu/run.sh OUT [--data FOLDER] [--only SECTION[,SECTION]] [--tiny]
#
# Sections in order of value, each with its own time limit and its own file OUT/SECTION.json: correct (a), throughput (b),
# cifar10 (c). A section whose file is there is skipped, so the same command again goes on after a cut; what a section had
# measured when it was cut is in OUT/SECTION.part.json. Last of all OUT/page.md is written, which belongs in ../pages.
#
# Needs Python with torch, numpy, scipy, pyarrow, safetensors, jaxtyping and Pillow: no Ray, no lpips. --data is a folder
# with cifar10/data_batch_1.webp (10,000 pictures as 100 x 100 tiles); without it (c) is left out. --tiny: in miniature,
# on any machine.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: run.sh OUT [--data FOLDER] [--only SECTION[,SECTION]] [--tiny]}; shift
data= tiny= only=correct,throughput,cifar10 given="$out $*"
while (($#)); do
  case $1 in
    --data) data=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    --tiny) tiny=--tiny; shift ;;
    *) echo "run.sh: unknown option $1" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # what torch's deterministic algorithms ask for
python=${PYTHON:-python3}
declare -A limit=([correct]=80 [throughput]=160 [cifar10]=300)
echo "benchmarks/gpu/run.sh $given" > "$out/command.txt"

for section in ${only//,/ }; do
  if [[ -e $out/$section.json ]]; then echo "== $section is done"; continue; fi
  if [[ $section == cifar10 && -z $data ]]; then echo "== cifar10 is left out: no --data"; continue; fi
  echo "== $section, at most ${limit[$section]} s"
  timeout "${limit[$section]}" "$python" "$here/$section.py" --out "$out" ${data:+--data "$data"} $tiny \
    || echo "== $section was cut or failed (exit code $?); what it had measured is kept"
done
"$python" "$here/page.py" --out "$out" ${data:+--data "$data"} $tiny
