#!/bin/bash
# sbatch scripts/pods/slurm.sh: four nodes, a process each. Put your config and workdir here.
#SBATCH --job-name=bert --nodes=4 --ntasks-per-node=1 --time=12:00:00
#SBATCH --requeue --open-mode=append --signal=TERM@120
for try in 1 2 3 4 5; do
  srun .venv/bin/python scripts/train.py --config configs/lm/bert_base.py --workdir /shared/runs/bert
  code=$?
  case $code in 6 | 134 | 137) sleep 10 ;; *) break ;; esac
done
case $code in 75 | 143) scontrol requeue $SLURM_JOB_ID ;; esac
exit $code
