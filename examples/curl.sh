#!/usr/bin/env bash
# Classify texts with `kdc serve` by curl (7.76 or newer) and jq: one request, with retries if the service is busy.
#
#     ./curl.sh 'a gripping film' dull        # or one text a line on standard input, at most KDC_MAX_TEXTS (1024)
#
# Prints label and score of each; blank lines are left out. A tab separates the two texts of a pair. KDC_URL names the
# service (default http://localhost:3000), KDC_TOKEN holds its bearer token, if it needs one.
#
# --retry pauses 1, 2, 4 ... seconds, or what Retry-After says if that is longer. It takes 429 and 503, and also 408,
# 500, 502, 504 and a try that took too long; never another 4xx. It has no jitter: for many clients the other examples
# are better.
set -euo pipefail

reply=$(mktemp)
trap 'rm -f "$reply"' EXIT

# The token goes through a pipe, so that `ps` does not show it. The script checks the status, because curl exits with 0
# if Retry-After is longer than --retry-max-time.
status=$(
  if (($#)); then printf '%s\n' "$@"; else cat; fi |
    jq --raw-input --null-input '{inputs: [inputs | select(test("\\S")) | split("\t")], parameters: {top_k: 1}}' |
    curl --silent --show-error --output "$reply" --write-out '%{http_code}' \
      --retry 3 --retry-connrefused --retry-max-time 30 --max-time 12 \
      --header @<(printf '%s' "${KDC_TOKEN:+Authorization: Bearer $KDC_TOKEN}") \
      --header 'Content-Type: application/json' --data-binary @- "${KDC_URL:-http://localhost:3000}/predict"
) || true
if [ "$status" != 200 ]; then
  echo "error: $status $(cat "$reply")" >&2
  exit 1
fi
jq --raw-output '.[][] | "\(.label)\t\(.score * 10000 | round / 10000)"' "$reply"
