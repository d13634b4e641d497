#!/usr/bin/env bash
# What a first run on a GPU has to check, in ten minutes: bash benchmarks/gpu.sh [--dry-run] [FOLDER]
# One log per step and summary.txt go to FOLDER (default: gpu_results). A step that fails or takes
# too long does not end the others; the exit status is 1 then. --dry-run: tiny sizes on the CPU.
set -u
dry=""
if [ "${1:-}" = "--dry-run" ]; then dry=yes; shift; fi
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-gpu_results}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
cd "$here/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python}
failed=0
: > "$out/summary.txt"

run() {  # NAME SECONDS COMMAND...
    local name=$1 limit=$2 begin=$SECONDS status=0; shift 2
    timeout "$limit" "$@" > "$out/$name.log" 2>&1 || status=$?
    local word=ok
    if [ $status -eq 124 ]; then word="over $limit s"; elif [ $status -ne 0 ]; then word="FAILED ($status)"; fi
    [ $status -eq 0 ] || failed=1
    printf '%-12s %-14s %4d s\n' "$name" "$word" $((SECONDS - begin)) | tee -a "$out/summary.txt"
}

if [ -n "$dry" ]; then
    step="--device cpu --smoke"; checks="--dry-run"; tests="tests/engine/test_self_check.py"
    export CUDA_VISIBLE_DEVICES=
else
    step="--device cuda --rounds 10 --model-rounds 7"; checks=""
    tests="tests/engine/gpu tests/engine/test_self_check.py"
    nvidia-smi > "$out/machine.txt" 2>&1
fi
rows="merged merged_recompute v2 lora lora_ours full full_sdpa frozen"

run doctor 60 "$python" tools/doctor.py
for check in masks bits stream waits launches spills index; do
    # the interpreter where there is no GPU, for this process alone
    run "$check" 45 env ${dry:+TRITON_INTERPRET=1} "$python" benchmarks/gpu_checks.py $check $checks
done
run tests 120 "$python" -m pytest -q -p no:cacheprovider $tests
for kind in fp32 tf32 bf16; do
    precision=fp32; override=0
    [ $kind = bf16 ] && precision=amp
    [ $kind = tf32 ] && override=1
    run "step_$kind" 50 env TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=$override "$python" benchmarks/step.py \
        --sections linear block --batch 4 --dtype $precision --variants $rows --out "$out/step_$kind" $step
    run "model_$kind" 50 env TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=$override "$python" benchmarks/step.py \
        --sections model --batch 2 --models vit_b --dtype $precision --variants $rows --out "$out/model_$kind" $step
done
# last, since the kernels are built in each of the tiles; later runs on this machine use its choice
run tune 120 "$python" tools/doctor.py --tune
exit $failed
