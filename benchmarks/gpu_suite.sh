#!/usr/bin/env bash
# Everything worth knowing about Lamp on this machine, within a few minutes: data, tests, trainings, evaluation, benchmarks.
#
#   bash benchmarks/gpu_suite.sh --out DIR --minutes 9
#
# Call it again with the same DIR to go on: finished stages are skipped, an interrupted training goes on. Paths count
# from the checkout, as in run.sh; the Python that is active is used if it holds the packages. `--help` shows the rest.

set -eo pipefail
fail() { echo "error: $*" >&2; exit 2; }

cd "$(dirname "${BASH_SOURCE[0]}")/.."
mode=benchmark asks=""
source scripts/environment.sh
set_up_environment
exec "$python" -m benchmarks.gpu_suite "$@"
