# Sourced by run.sh: finds or makes the Python environment, then picks how processes start.
#
# The active environment is used if it holds what requirements.txt asks for; else .venv is, and is made if need be.
# Yours to set:
#   LAMP_PYTHON=/path/to/python      use this Python if it holds the packages, else make .venv with it (3.11 or 3.12)
#   LAMP_TORCH="torch==2.11.0+cpu"   install this torch into .venv: versions or wheel files, separated by spaces
#   PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and pip's other settings are honoured. CPU wheels come from PyTorch's CPU index:
#       LAMP_TORCH="torch==2.11.0+cpu torchvision==0.26.0+cpu" \
#       PIP_EXTRA_INDEX_URL="the URL of PyTorch's CPU wheels" bash run.sh …
#   A torch that is already installed is kept if scripts/check_environment.py finds it new enough.

venv=.venv
unfinished=$venv/.lamp-unfinished # there from before the first change of an install until after the last
installed=$venv/.lamp-installed   # written last: a hash of the requirements, and LAMP_TORCH
install_log=$venv/pip.log

# Sets `python` to an interpreter that holds every package; where none does, installs them into .venv.
set_up_environment() {
  local candidate reason=""
  for candidate in "${LAMP_PYTHON:-python}" "$venv/bin/python"; do
    if accept "$candidate"; then
      [[ -n $asks ]] || echo "Environment: $environment" >&2
      return
    fi
    reason=${environment:-$reason}
  done
  if [[ -n $asks && $mode != test ]]; then help_without_environment; fi
  install_environment "${reason:-no Python on the PATH has the packages}"
  echo "Environment: $environment" >&2
}

# Whether the interpreter can be used; `environment` becomes what was found, or what is wrong.
accept() {
  environment=""
  command -v "$1" >/dev/null || return 1
  environment=$("$1" scripts/check_environment.py requirements.txt "$venv" 2>/dev/null) || return 1
  if [[ $environment == "$venv "* ]] && ! is_current; then
    environment="$venv is unfinished or older than requirements.txt or LAMP_TORCH"
    return 1
  fi
  python=$1
  # The launchers beside this interpreter, not those of another one.
  if [[ $1 == */* ]]; then PATH=$(cd "$(dirname "$1")" && pwd):$PATH; fi
}

# Whether the last install into .venv was finished and is for today's requirements; a .venv of the user's own counts.
is_current() {
  [[ ! -e $unfinished ]] || return 1
  [[ -e $installed ]] || return 0
  local hash torch
  { read -r hash; read -r torch; } <"$installed" || true
  [[ $hash == "$(requirements_hash)" && ${LAMP_TORCH-$torch} == "$torch" ]]
}

requirements_hash() { grep -v '^#' requirements.txt | cksum | tr ' ' '-'; }

# One installer at a time in a checkout; whoever waited finds the work done.
install_environment() {
  local torch=""
  mkdir -p "$venv"
  if command -v flock >/dev/null; then
    exec 9>"$venv/.lamp-lock"
    flock --nonblock 9 || { echo "Another run.sh is setting up $venv; waiting for it." >&2; flock 9; }
    if accept "$venv/bin/python"; then exec 9>&-; return; fi
  fi
  [[ ! -e $installed ]] || torch=$(sed -n 2p "$installed")
  [[ ! -e $unfinished ]] || torch=$(<"$unfinished")
  torch=${LAMP_TORCH-$torch}
  has_pip || is_ours || fail "$venv is no environment with pip and Python 3.11 or 3.12; move it away and run again"
  echo "Setting up $venv, since $1." >&2
  echo "$torch" >"$unfinished"
  rm -f "$installed"
  has_pip || make_venv
  install_packages
  printf '%s\n' "$(requirements_hash)" "$torch" >"$installed"
  rm -f "$unfinished"
  accept "$venv/bin/python" || fail "the packages are installed, but ${environment:-$venv/bin/python does not run}"
  exec 9>&-
}

has_pip() { is_suitable "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

# Whether .venv may be emptied: nobody but an earlier set-up put anything there.
is_ours() { [[ -e $unfinished || -e $installed || ! -e $venv/bin ]]; }

make_venv() {
  local candidate
  find "$venv" -mindepth 1 -maxdepth 1 ! -name '.lamp-*' -exec rm -rf {} +
  for candidate in ${LAMP_PYTHON:+"$LAMP_PYTHON"} python3.11 python3.12 python3 python; do
    is_suitable "$candidate" || continue
    echo "Making $venv with $candidate." >&2
    "$candidate" -m venv "$venv" >&2 && return
    fail "$candidate cannot make a virtual environment: install its venv package (python3-venv), or set LAMP_PYTHON"
  done
  fail "no Python 3.11 or 3.12 was found; install one, or set LAMP_PYTHON=/path/to/python3.11"
}

is_suitable() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; }

install_packages() {
  local requirements=requirements.txt
  if [[ -n $torch ]]; then
    requirements=$venv/requirements.txt
    grep -vE '^torch(vision)?[ =<>]' requirements.txt >"$requirements"
    tr ' ' '\n' <<<"$torch" >>"$requirements"
    [[ $torch == *torchvision* ]] || echo torchvision >>"$requirements"
  fi
  echo "Installing ${torch:-PyTorch with CUDA} and the other packages of requirements.txt, once." >&2
  if [[ -z $torch ]]; then
    echo "About 5.2 GB on disk; about 2 minutes on a fast line." >&2
    has_torch || check_disk 5200
  fi
  rm -f "$install_log"
  pip_install "$requirements" >&2 || {
    local package cause
    cause=$(grep -aoE 'ERROR: .*' "$install_log" 2>/dev/null | tail -n 1)
    package=$(grep -aoE 'Collecting [^ ]+|Installing collected packages' "$install_log" 2>/dev/null | tail -n 1)
    package=${package#Collecting } cause=${cause#ERROR: }
    # On a full disk the last one that was collected is not the culprit; a package that does not build is.
    if [[ $package == Installing* ]]; then
      [[ $cause == *OSError* ]] && package="copying the packages to $venv" || package="building a package"
    fi
    fail "the set-up stopped at ${package:-the first package} (${cause:-no reason given}). Check network, disk space and" \
      "PIP_INDEX_URL, then run the same command again: it goes on from there. The log is $install_log"
  }
}

# check_disk MEGABYTES: pip would fill the disk before it says that it is too small. What is there already counts.
check_disk() {
  local free there
  free=$({ df -Pk "$venv" 2>/dev/null || true; } |
    awk 'END { for (i = NF; i > 1; i--) if ($i ~ /^[0-9]+%$/) { printf "%.0f", $(i - 1) * 1.024e-3; exit } }')
  there=$({ du -sk "$venv" 2>/dev/null || true; } | awk 'END { printf "%.0f", $1 * 1.024e-3 }')
  [[ -z $free ]] || ((free + there >= $1)) ||
    fail "the disk of $venv has $free MB free, and the packages take about $(($1 - there)) MB more;" \
      "free some space, or set LAMP_TORCH to a build for the CPU"
}

has_torch() { "$venv/bin/python" -m pip show --quiet torch 2>/dev/null; }

# What is there already, most of it in an environment that is brought up to date, is not listed.
pip_install() {
  local words=(-m pip install --disable-pip-version-check --log "$install_log" -r "$1")
  if has_torch; then
    "$venv/bin/python" "${words[@]}" | sed -u '/^Requirement already satisfied/d'
  else
    "$venv/bin/python" "${words[@]}" # with pip's progress bars, which need a terminal
  fi
}

help_without_environment() {
  local file
  if [[ $asks == --list ]]; then
    for file in $(grep -lE '^# +bash run.sh --config=' configs/*.yaml); do
      echo "$(basename "$file"): $(sed -n '1s/^# *//p' "$file")"
    done
  else
    sed -n '2,/^$/s/^# \{0,1\}//p' run.sh
  fi
  echo "The packages are not installed yet: any other command installs them; then $asks shows keys and options too."
  exit 0
}

# `--config x.yaml` as it should have been typed.
with_equals_sign() {
  if [[ $1 == --[!-]* && -n ${2-} && $2 != -* ]]; then echo "$1=$2"; else echo "options as --key=value"; fi
}

# Sets `launcher`, the words in front of `-m training.main`. `num_processes` counts those of all machines.
choose_launcher() {
  launcher=("$python")
  [[ -z $asks ]] || return 0
  if [[ -n $accelerate_config ]]; then
    [[ -f $accelerate_config ]] || fail "--accelerate_config=$accelerate_config is not a file; accelerate config writes one"
    [[ -z $num_processes ]] || export LAMP_NUM_PROCESSES=$num_processes
    export LAMP_ACCELERATE_CONFIG=$accelerate_config
    "$python" -m training.main "${arguments[@]}" --check || exit
    launcher+=(scripts/launch.py accelerate launch "--config_file=$accelerate_config" ${num_processes:+"--num_processes=$num_processes"})
    return
  fi
  check_counts
  export LAMP_NUM_PROCESSES=$num_processes
  if ((num_processes == 1)); then return; fi
  # Mistakes in the configuration end here, in one line, instead of in the report of a launcher.
  "$python" -m training.main "${arguments[@]}" --check || exit
  local here=$((num_processes / num_machines)) gpus
  gpus=$(count_gpus)
  if ((gpus > 0)); then
    ((here <= gpus)) || fail "--num_processes=$num_processes needs $here GPUs on this machine, which has $gpus;" \
      "use --num_processes=$((gpus * num_machines)) and raise train.grad_accum"
    launcher+=(scripts/launch.py accelerate launch --multi_gpu "--num_processes=$num_processes" "--num_machines=$num_machines"
      "--machine_rank=$machine_rank" ${main_process_ip:+"--main_process_ip=$main_process_ip"}
      ${main_process_port:+"--main_process_port=$main_process_port"} --mixed_precision=no --dynamo_backend=no)
  else
    launch_on_cpu "$here"
  fi
}

# `accelerate launch` without GPUs would start one process and say nothing, hence torchrun.
launch_on_cpu() {
  local here=$1 cores
  cores=$(getconf _NPROCESSORS_ONLN)
  ((here <= cores)) || echo "warning: $here processes share $cores cores; no more than $cores will be faster" >&2
  export ACCELERATE_USE_CPU=true
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((here < cores ? cores / here : 1))}
  launcher+=(scripts/launch.py torchrun --nproc_per_node "$here")
  if ((num_machines > 1)); then
    launcher+=(--nnodes "$num_machines" --node_rank "$machine_rank" --master_addr "$main_process_ip"
      --master_port "${main_process_port:-29500}")
  elif [[ -n $main_process_port ]]; then
    launcher+=(--master_port "$main_process_port")
  else
    launcher+=(--standalone) # a free port, so that two runs on one machine do not meet
  fi
}

check_counts() {
  local name
  num_processes=${num_processes:-$num_machines}
  for name in num_processes num_machines machine_rank; do
    [[ ${!name} =~ ^[0-9]+$ ]] || fail "--$name=${!name} is not a whole number"
  done
  ((num_processes > 0 && num_machines > 0)) || fail "--num_processes and --num_machines are at least 1"
  ((num_processes % num_machines == 0)) ||
    fail "--num_processes=$num_processes does not divide among --num_machines=$num_machines; N counts the processes of all"
  ((machine_rank < num_machines)) || fail "--machine_rank=$machine_rank: the ranks go from 0 to $((num_machines - 1))"
  ((num_machines == 1)) || [[ -n $main_process_ip ]] ||
    fail "--num_machines=$num_machines needs --main_process_ip=<address of the machine with rank 0>"
}

# CUDA devices that torch may use, without the seconds that importing torch takes.
count_gpus() {
  local count visible
  if [[ $environment == *+cpu* ]]; then echo 0; return; fi
  if command -v nvidia-smi >/dev/null; then
    count=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || true
  else
    count=$(compgen -G '/dev/nvidia[0-9]*' | wc -l) || true
  fi
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    visible=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '^[^-]') || true
    count=$((visible < count ? visible : count))
  fi
  echo "$count"
}
