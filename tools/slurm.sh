#!/bin/bash
# A run on Slurm that goes on by itself after its time limit. From the root of the repository, for example:
#
#     sbatch --nodes 4 --time 24:00:00 tools/slurm.sh --config-file configs/joint/uniperceiver_v2_swin_large.yaml \
#         OUTPUT_DIR /shared/runs/swin_l
#
# Options of sbatch override the lines below. OUTPUT_DIR is a folder that all hosts share. Five minutes before the limit
# Slurm sends SIGUSR1 to this script, which passes it on. The run writes a checkpoint and ends with code 138, and the
# job is queued again. PYTHON is the interpreter, by default that of `make setup`.
#SBATCH --job-name=uniperceiver_v2
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

signalled=
pass_on() {
    signalled=yes
    kill -USR1 "$run" # srun sends it to every process
}
trap pass_on USR1

# From Slurm 22.05 on, srun does not take this number from sbatch, and would give each process one core.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# The processes find each other by srun's variables. At the first start there is no checkpoint, and --resume begins anew.
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" projects/uniperceiver_v2/train_net.py --resume "$@" &
run=$!
while true; do # a signal interrupts the wait
    wait "$run"
    code=$?
    kill -0 "$run" 2>/dev/null || break
done

# Codes from 128 on are those of signals. Of a run that was told to end, they are no mistake.
if [ -n "$signalled" ] && [ "$code" -ge 128 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
