#!/usr/bin/env bash
# The walk: the main job end to end at toy size on the sample crawl. A second run resumes; each step says so.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p runs/walk

steps=()
seconds=()
walk() { # NAME COMMAND...: runs a step, shows it, notes how long it took
    local began
    began=$(date +%s)
    printf '\n== %s: %s\n' "$1" "${*:2}"
    "${@:2}"
    steps+=("$1")
    seconds+=($(($(date +%s) - began)))
}

walk build ./jobs/walk/build.yaml
walk pretrain ./jobs/walk/pretrain.yaml
walk evaluate ./jobs/walk/evaluate.yaml
walk scale ./jobs/walk/scale.yaml

printf '\n== where the time went\n'
printf '%-10s %5s s\n' install "$(cat .venv/installed 2>/dev/null || echo 0)"
for i in "${!steps[@]}"; do printf '%-10s %5s s\n' "${steps[i]}" "${seconds[i]}"; done
cat <<'EOF'

== where to look
the crawl, kept and refused    runs/walk/build/report.html
results, trees and groups      runs/walk/evaluate/report.html
the scaling law                runs/walk/scale/report.html
every run                      .venv/bin/mlflow ui --backend-store-uri sqlite:///runs/walk/mlflow.db
EOF
