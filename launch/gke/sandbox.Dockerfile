# What a program of the policy finds in its pod: agent-sandbox's runtime, and Python.
#   docker build -f launch/gke/sandbox.Dockerfile -t IMAGE launch/gke
ARG SANDBOXD=us-central1-docker.pkg.dev/k8s-staging-images/agent-sandbox/sandboxd:latest-main
FROM $SANDBOXD AS sandboxd

FROM python:3.12-slim-bookworm
COPY --from=sandboxd /usr/local/bin/sandboxd /usr/local/bin/sandboxd
WORKDIR /workspace
USER 1000:1000
ENTRYPOINT ["/usr/local/bin/sandboxd"]
