#!/usr/bin/env bash
# Training on two machines. Start it on both, first on the one that has the text:
#
#     bash two_machines.sh 0 FIRST_MACHINE corpus.txt     # on the first machine
#     bash two_machines.sh 1 FIRST_MACHINE corpus.txt     # on the second one
#
# FIRST_MACHINE is a name or an address of the first machine that the second one can reach. The model is written on the
# first machine. The same commands again resume a run that was stopped. PROCESSES and PORT in the environment set the
# number of processes of this machine (else one for each GPU), and the port at the first machine (else 29500).
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: bash two_machines.sh 0|1 FIRST_MACHINE TEXT" >&2
    exit 2
fi
node_rank=$1 first_machine=$2 text=$3
if [ -z "${PROCESSES:-}" ] && ! command -v nvidia-smi >/dev/null; then
    echo "there is no nvidia-smi here to count GPUs; set the number of processes: PROCESSES=1 bash two_machines.sh ..." >&2
    exit 2
fi
processes=${PROCESSES:-$(nvidia-smi --list-gpus | wc -l)}

# With the rank given, the first process is on the first machine, which has the text. (With --rdzv-backend c10d the
# machines are ranked by name.)
exec torchrun \
    --nnodes 2 --nproc-per-node "$processes" \
    --node-rank "$node_rank" --master-addr "$first_machine" --master-port "${PORT:-29500}" \
    -m llmcli train "$text" --epochs 1 -o model.safetensors
