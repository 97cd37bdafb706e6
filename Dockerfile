# The main job on a GPU; docs/how-to/container.md has the commands to build and run it.
#
# The base image brings CUDA and the very torch of constraints.txt, so that pip leaves torch alone. Another CUDA:
#   docker build --build-arg BASE=pytorch/pytorch:2.13.0-cuda12.8-cudnn9-runtime -t gpt2_hf .
ARG BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime
FROM ${BASE}

# HOME is a folder that every user may write to, also one that the image does not know (`--user 1000:1000`): Matplotlib,
# Triton and others keep their caches there, and warn or fail where they cannot.
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_BREAK_SYSTEM_PACKAGES=1 \
    HOME=/work/.cache \
    HF_HOME=/work/.cache/huggingface

WORKDIR /work

# Dependencies first: this layer is rebuilt only when they change.
COPY pyproject.toml constraints.txt ./source/
RUN python -c "import tomllib; print(*tomllib.load(open('source/pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > requirements.txt \
    && pip install -c source/constraints.txt -r requirements.txt \
    && rm requirements.txt

# The sources do not stay: beside the installed package they would be a second one, found from /work alone.
COPY LICENSE README.md ./source/
COPY gpt2_hf ./source/gpt2_hf
RUN pip install --no-deps ./source \
    && rm -r source \
    && useradd --home-dir /work/.cache --no-create-home --uid 10001 trainer \
    && mkdir -p checkpoints .cache /data \
    && chmod -R a+rwX checkpoints .cache /data

COPY training_args ./training_args
COPY run_clm.py ./

# By number, so that Kubernetes can tell that it is not root.
USER 10001

# In exec form the trainer is PID 1: `docker stop --time 120` sends it SIGTERM, it saves a checkpoint and exits with 75.
ENTRYPOINT ["python", "run_clm.py"]
CMD ["--config", "training_args/base.json"]
