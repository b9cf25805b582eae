#!/usr/bin/env bash
# Calls URL with one curl process per request for SECONDS, PAUSE_MS apart; the proxy comes only from the environment.
set -u
url=$1 seconds=$2 pause_ms=$3
ok=0 failed=0 first_error="" answer="$(mktemp)"
declare -A statuses=()
trap 'rm -f "$answer" "$answer.err"' EXIT

now_ms() { local now=${EPOCHREALTIME/[.,]/}; echo $((now / 1000)); }
end=$(($(now_ms) + ${seconds%.*} * 1000))
pause=$(printf '%d.%03d' $((pause_ms / 1000)) $((pause_ms % 1000)))

while :; do
  error=""
  if status=$(curl -q -sS --max-time 30 -o "$answer" -w '%{http_code}' "$url" 2>"$answer.err"); then
    statuses[$status]=$((${statuses[$status]:-0} + 1))
    [[ $status == 2?? ]] || error="status $status: $(head -c 300 "$answer")"
  else
    error="$(head -c 300 "$answer.err")"
  fi
  if [[ -z $error ]]; then ok=$((ok + 1)); else failed=$((failed + 1)); fi
  first_error=${first_error:-$error}
  (($(now_ms) + pause_ms >= end)) && break
  sleep "$pause"
done

counts=""
for status in "${!statuses[@]}"; do counts+="${counts:+,}\"$status\":${statuses[$status]}"; done
quoted=null
if [[ -n $first_error ]]; then
  first_error=${first_error//\\/\\\\} first_error=${first_error//\"/\\\"}
  quoted="\"$(tr '\n\r\t' '   ' <<<"$first_error" | tr -d '\000-\037')\""
fi
printf '{"ok":%d,"failed":%d,"statuses":{%s},"first_error":%s}\n' "$ok" "$failed" "$counts" "$quoted"
