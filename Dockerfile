# The image of the BIDS App, for any Docker from 17.05 on: nothing here needs BuildKit.
#
#   docker build -t precondqsm_bids .
#
# BASE_IMAGE     any Debian or Ubuntu, with or without Python (>= 3.11 is what it must offer)
# RUNTIME_IMAGE  a smaller one with the same Python at the same place, if there is one
# PIP_ARGS       e.g. '--no-index --find-links /src/wheelhouse' on a host without a network, after
#                'pip wheel -w wheelhouse -c constraints.txt . "setuptools>=70.1"', in this folder
#                and with the same Python, on one that has it
# PIP_*          where pip finds packages: its own variables. They stay in the first stage.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG RUNTIME_IMAGE=${BASE_IMAGE}

FROM ${BASE_IMAGE} AS build
RUN python3 -c 'import ensurepip, venv' 2>/dev/null \
    || { apt-get update -qq && apt-get install -y -qq --no-install-recommends \
         python3 python3-venv ca-certificates; }
# setuptools goes: what needs it at run time declares it, and then gets one of today.
RUN python3 -m venv /opt/precondqsm_bids \
    && /opt/precondqsm_bids/bin/pip uninstall -q -y setuptools
ARG PIP_ARGS=
ARG PIP_CERT
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_DEFAULT_TIMEOUT
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# COPY wants at least one file to match, and the wheelhouse is optional: hence LICENSE.
COPY LICENSE wheelhous[e] wheelhouse/
# The dependencies are a layer of their own, so that a change of the source leaves them cached.
# Tests and C sources are dead weight in a container. The .pyi files are not: scikit-image reads
# them to find its functions. Byte code is not checked against time stamps, so that it is used
# whatever a copy or a conversion to another image format does to the times of the files.
COPY setup.cfg constraints.txt ./
RUN set -e; \
    python3 -c "import configparser; c = configparser.ConfigParser(); c.read('setup.cfg'); \
        print(c['options']['install_requires'])" >requirements.txt; \
    cd /opt/precondqsm_bids; \
    bin/pip install -q --no-compile ${PIP_ARGS} -r /src/requirements.txt \
        -c /src/constraints.txt; \
    find lib -depth -type d -name tests -exec rm -rf {} +; \
    find lib -type f \( -name '*.c' -o -name '*.cpp' -o -name '*.pyx' -o -name '*.h' \) -delete; \
    bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash lib
# The commands are isolated (-I): a PYTHONPATH or ~/.local of the host, which Apptainer lets in,
# would bring other packages than those that were tested.
COPY pyproject.toml README.md LICENSE ./
COPY precondqsm_bids precondqsm_bids
RUN set -e; cd /opt/precondqsm_bids; \
    bin/pip install -q --no-compile ${PIP_ARGS} --no-deps /src; \
    bin/pip check; \
    bin/pip uninstall -q -y pip; \
    sed -i '1s/$/ -Iu/' bin/precondqsm_bids bin/precondqsm_phantom; \
    bin/python -m compileall -q --invalidation-mode unchecked-hash \
        lib/python3*/site-packages/precondqsm_bids

FROM ${RUNTIME_IMAGE}
# A root file system may be read-only, so the standard library is compiled here, too: the
# python:*-slim images come without its byte code, and each start would compile it anew.
RUN set -e; \
    if ! python3 --version >/dev/null 2>&1; then \
        apt-get update -qq; \
        apt-get install -y -qq --no-install-recommends python3; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    python3 -m compileall -q -x '/(test|tests|lib2to3|idlelib|site-packages)/' \
        "$(python3 -c 'import os; print(os.path.dirname(os.__file__))')"; \
    useradd --create-home --home-dir /home/app --shell /usr/sbin/nologin app; \
    chmod 1777 /home/app; \
    mkdir /opt/templateflow; \
    echo 'Not empty, so that templateflow does not unpack its skeleton at every start.' \
        >/opt/templateflow/README
COPY --from=build /opt/precondqsm_bids /opt/precondqsm_bids
ENV HOME=/home/app \
    LANG=C.UTF-8 \
    PATH=/opt/precondqsm_bids/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONNOUSERSITE=1 \
    PYTHONUNBUFFERED=1 \
    TEMPLATEFLOW_HOME=/opt/templateflow \
    MPLBACKEND=agg \
    MPLCONFIGDIR=/tmp \
    NO_ET=1 \
    NIPYPE_NO_ET=1 \
    OMP_NUM_THREADS=1 \
    OPENBLAS_NUM_THREADS=1 \
    MKL_NUM_THREADS=1
# Here, not at the first run, comes out that RUNTIME_IMAGE has another Python than BASE_IMAGE.
RUN python -c 'import numpy, scipy, skimage, nibabel, precondqsm_bids' && rm -rf /tmp/*
USER app
WORKDIR /tmp
# Equal to precondqsm_bids.__version__, which no instruction here can read; a test compares them.
ARG VERSION=0.2.0
ARG REVISION=unknown
ENV PRECONDQSM_BIDS_DOCKER_TAG=precondqsm_bids:${VERSION} \
    PRECONDQSM_BIDS_REVISION=${REVISION}
LABEL org.opencontainers.image.title="precondqsm_bids" \
      org.opencontainers.image.description="Preconditioned quantitative susceptibility mapping, a BIDS App" \
      org.opencontainers.image.vendor="The precondqsm_bids developers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["/opt/precondqsm_bids/bin/precondqsm_bids"]
