#!/bin/sh
# Prints how many tests passed, failed (or could not be run) and were skipped, by the last line of pytest's output.
summary=$(grep -E '^(=+ )?[0-9]+ (passed|failed|skipped|error).* in [0-9.]+s' "$1" | tail -n 1)
number() { echo "$summary" | sed -nE "s/.*\\b([0-9]+) $1.*/\\1/p" | grep . || echo 0; }
[ -n "$summary" ] || { echo '? 1 ?'; exit; }
echo "$(number passed) $(($(number failed) + $(number error))) $(number skipped)"
