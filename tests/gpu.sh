#!/usr/bin/env bash
# All that a card shows and nothing else does: builds in place against this machine's own Python and torch, without
# network, runs the tests that need a card, compute-sanitizer over them, and the bench's rows of the GPU.
#
# Writes at most eight files to $OUT (by default out/gpu): a log of each part and a summary, whose lines say what each
# part returned. What is not installed is told and left out. All parts share $SECONDS_IN_ALL (300) seconds: each has a
# limit of its own, here of 300 and more of more, and leaves to those after it what they need.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-out/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
summary=$out/summary.txt
: >"$summary"
failed=0
in_all=${SECONDS_IN_ALL:-300}
end=$((SECONDS + in_all - 5)) # to end a part that does not stop, and to begin

say() { echo "$*" | tee -a "$summary"; }

# Runs a part under a limit of seconds, with so many left for the parts after it; its output is in a file of its name.
part() {
    local name=$1 seconds=$(($2 * in_all / 300)) kept=$(($3 * in_all / 300))
    shift 3
    local from=$SECONDS status=0 left=$((end - SECONDS - kept))
    [ "$left" -lt "$seconds" ] && seconds=$left
    if [ "$seconds" -lt 1 ]; then
        say "$name: left out: none of $in_all s are left"
        return 1
    fi
    timeout -k 2 "$seconds" "$@" >"$out/$name.txt" 2>&1 || status=$?
    say "$name: returned $status after $((SECONDS - from)) s of at most $seconds: $(tail -n 1 "$out/$name.txt")"
    return "$status"
}

build() {
    local generator=()
    command -v ninja >/dev/null && generator=(-G Ninja)
    local defines=(-DCMAKE_BUILD_TYPE=Release -DAIGC_FAST_CUDA="${AIGC_FAST_CUDA:-ON}" -DSKBUILD_PROJECT_VERSION="$version")
    cmake -S . -B build_gpu "${generator[@]}" -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" \
        -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" "${defines[@]}" &&
        cmake --build build_gpu --parallel "$(nproc)" &&
        cp --remove-destination build_gpu/_C*.so aigc_fast/
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_WAIT_POLICY=passive
say "$("$python" -c 'import platform, torch; print("python", platform.python_version(), "torch", torch.__version__, *([torch.cuda.get_device_name(0)] if torch.cuda.is_available() else ["no CUDA device"]))')"
export -f build
export python version
part build 170 115 bash -c build || failed=1
# The files that have such tests: to collect the others takes longer than these.
mapfile -t files < <(grep -rlE 'mark\.gpu|ELSEWHERE' tests --include='test_*.py')
# Most of their time Triton compiles, which each process does for itself.
processes=()
"$python" -c 'import xdist' 2>/dev/null && processes=(-n "$(nproc)")
part tests 110 70 "$python" -m pytest -q -p no:cacheprovider "${processes[@]}" -m gpu "${files[@]}" || failed=1
# Every kernel of CUDA C++ once, and those whose blocks wait for each other as much as they do.
of_sanitizer="lie_otherwise or ar_recursion or (attention and 1.4.1.300) or TestBlocksThatWait"
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        part "$tool" 30 40 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pytest -q -p no:cacheprovider \
            -m gpu tests/ops/test_places.py tests/test_cuda.py -k "cuda and ($of_sanitizer) and not (auto or reference or triton)" || failed=1
    done
else
    say "compute-sanitizer: not installed"
fi
part bench 60 0 "$python" tests/gpu_speed.py || failed=1
exit "$failed"
