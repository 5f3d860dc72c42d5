#!/usr/bin/env bash
# Set up what is needed (once) and run.
#
#   bash run.sh --config=NAME.yaml [--mode=MODE] [--num_processes=N] [--key.sub=value ...]
#
#   --config=NAME.yaml      an entry of configs/ or the path of a yaml of your own; tokenizer.yaml without this
#   --mode=MODE             train | eval; tokenize writes the tokens that --train.token_cache=true reads;
#                           compare puts the results of evaluations into one table, --compare.inputs=[FILE,FOLDER];
#                           pipeline is the mode of quickstart.yaml;
#                           play serves a page to play trained worlds in, and needs no config;
#                           dream writes a film of a dream (GIF, MP4), and needs no config;
#                           test runs pytest, in LAMP_TEST_PROCESSES processes (cores and one more, at most four), and
#                           hands it the other arguments;
#                           generate is data_generation/generate.py, with its own configs;
#                           import is data.import_videos, inspect is data.inspect, with options of their own;
#                           setup only makes the environment, if it is not there
#   --num_processes=N       processes in all: one per GPU, or any number on CPU
#   --key.sub=value         any key of the config; of repeated keys the last counts
#   --group=option          another file of a group, such as --tokenizer=small
#   --help, --list          the keys of a config; all configs and group options
#   --num_machines=M --machine_rank=R --main_process_ip=IP --main_process_port=P
#                           several machines; N counts the processes of all of them
#   --accelerate_config=F   a file of `accelerate config`, which then decides how processes start
#
# scripts/environment.sh says how to keep your own Python, torch or package index.

set -eo pipefail
fail() { echo "error: $*" >&2; exit 2; }

arguments=() malformed=() program=() mode="" asks="" num_machines=1 machine_rank=0
while (($#)); do
  name=${1%%=*} value=${1#*=}
  case $1 in
    --num_processes=* | --num_machines=* | --machine_rank=* | --main_process_ip=* | --main_process_port=*)
      printf -v "${name#--}" %s "$value" ;;
    --accelerate_config=*) accelerate_config=$([[ -f $value ]] && realpath "$value" || echo "$value") ;;
    --mode=test | --mode=generate | --mode=import | --mode=inspect | --mode=setup) mode=${1#*=} ;;
    --config=* | --input=*)
      value=${value/#~\//$HOME/}
      arguments+=("$name=$([[ -e $value ]] && realpath "$value" || echo "$value")") ;;
    --help | -h | --list) asks=$1; arguments+=("$1") ;;
    --[!-]*=*) arguments+=("$1") ;;
    *) malformed+=("$1"); arguments+=("$1") ;;
  esac
  shift
done
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/environment.sh

if [[ $mode == setup ]]; then
  set_up_environment
  exit
fi
if [[ $mode == test ]]; then
  set_up_environment
  # Whole files side by side, each in one thread: tests are many small steps, and some of them wait.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  processes=${LAMP_TEST_PROCESSES:-$(($(getconf _NPROCESSORS_ONLN) + 1))}
  files=(--dist=loadfile --no-loadscope-reorder) # in the order of tests/conftest.py
  exec "$python" -m pytest --numprocesses="$processes" --maxprocesses=4 "${files[@]}" "${arguments[@]}"
fi
case $mode in
  generate) program=(data_generation/generate.py) ;;
  import) program=(-m data.import_videos) ;;
  inspect) program=(-m data.inspect) ;;
esac
if ((${#program[@]})); then
  set_up_environment
  exec "$python" "${program[@]}" "${arguments[@]}"
fi
if ((${#malformed[@]})); then
  fail "'${malformed[*]}' is not understood; write $(with_equals_sign "${malformed[@]}")"
fi
set_up_environment
choose_launcher
trap '' USR1 # clusters warn with it: trainings save and end, and their launchers must not die of it before
exec "${launcher[@]}" -m training.main "${arguments[@]}"
