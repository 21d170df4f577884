#!/usr/bin/env bash
# Everything that needs a GPU, in at most four minutes: the tests, an iteration of each task, with CUDA graphs and
# without, the Triton kernels, the step, and compiled encoders of text. Builds nothing. Needs the project's
# packages (`make setup`). The parts get 220 seconds. One that its time ends keeps the rows that it has.
#
#     tools/gpu_check.sh [FOLDER]
#
# Writes FOLDER/gpu_check.json (default output/gpu_check), and the log of each part beside it. The last line printed says
# whether all parts passed. PYTHON names the interpreter.
set -u
cd "$(dirname "$0")/.."
folder=${1:-output/gpu_check}
python=${PYTHON:-python3}
export PYTHONPATH=$PWD/projects/uniperceiver_v2:$PWD/projects/detectron2_core${PYTHONPATH:+:$PYTHONPATH}
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONUNBUFFERED=1
bench=projects/uniperceiver_v2/benchmarks
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

part() { # name, seconds, command...
    local name=$1 seconds=$2 start=$SECONDS
    shift 2
    timeout "$seconds" "$@" >"$folder/$name.log" 2>&1
    echo "$name $? $((SECONDS - start))" | tee -a "$folder/parts"
}

: >"$folder/parts"
# The tests leave one core to the compilation. There are 31 of them, which keep no more than 15 processes busy.
workers=$("$python" -c 'import os; print(min(max(len(os.sched_getaffinity(0)) - 1, 1), 15))')
export TORCHINDUCTOR_CACHE_DIR=$folder/inductor
compiled=("$python" "$bench/gpu_iterations.py" --models tiny --tasks corpus --precisions float32)
settings=(MODEL.UNIPERCEIVER_V2.COMPILE "['text_encoder','decoder']")
# Into the cache, beside the tests.
timeout 80 "${compiled[@]}" --repeats 1 -- "${settings[@]}" >"$folder/compilation.log" 2>&1 &
part tests 80 "$python" -m pytest -q -p no:cacheprovider -n "$workers" --durations=6 --tb=short -rf tests/test_gpu.py tests/test_precision.py \
    tests/modeling/layers/test_deformable_attention_triton.py -m "not slow" -k "not interpreted"
wait # for the compilation, which must not share the CPU with what is timed
part step 24 "$python" $bench/optimizer.py --device cuda --quick --json "$folder/step.json"
part tiny 42 "$python" $bench/gpu_iterations.py --models tiny --precisions float32 --graphs --json "$folder/tiny.json"
part r50 44 "$python" $bench/gpu_iterations.py --models R50 --precisions float32 --graphs --repeats 3 --json "$folder/r50.json"
part kernels 17 "$python" $bench/deformable_attention_gpu.py --device cuda --quick --json "$folder/kernels.json"
part compiled 13 "${compiled[@]}" --json "$folder/compiled.json" -- "${settings[@]}"

"$python" - "$folder" <<'PYTHON'
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
parts = [line.split() for line in (folder / "parts").read_text().splitlines()]
report = {name: {"exit status": int(status), "seconds": int(seconds)} for name, status, seconds in parts}
for name in report:
    if (folder / f"{name}.json").exists():
        report[name] |= json.loads((folder / f"{name}.json").read_text())
report["tests"]["summary"] = (folder / "tests.log").read_text().strip().splitlines()[-1:]
(folder / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
failed = [name for name, values in report.items() if values["exit status"]]
sys.exit(f"failed: {', '.join(failed)}; see {folder}" if failed else print("all parts passed"))
PYTHON
