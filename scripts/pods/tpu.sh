#!/bin/bash
# The startup script of every host of a TPU slice: see "TPU VM" in README.md beside it. Put the address
# of your copy of this repository, and your bucket, here. It runs at every boot, as root.
REPOSITORY=https://github.com/YOU/touchstone
BUCKET=YOUR-BUCKET
exec >> /var/log/touchstone.log 2>&1
export HOME=/root PATH=/root/.local/bin:$PATH
cd /root
command -v uv || curl -LsSf https://astral.sh/uv/install.sh | sh
[ -d touchstone ] || git clone -q "$REPOSITORY" touchstone
cd touchstone
[ -d .venv ] || uv venv -q --python 3.12
uv pip install -q -e ".[gcs]" "jax[tpu]" || exit
for try in {1..20}; do
  .venv/bin/python scripts/train.py --config configs/lm/bert_sotu.py --workdir "gs://$BUCKET/runs/bert"
  case $? in 6 | 75 | 134 | 137 | 143) sleep 10 ;; *) break ;; esac
done
