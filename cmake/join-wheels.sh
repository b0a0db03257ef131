#!/bin/sh
# Puts wheels together that came in pieces, NAME.whl.part-aa, NAME.whl.part-ab, ...; NAME.whl.sha256, the sum
# of the whole as docs/cuda.md writes it, tells when all of them are there.
#   cmake/join-wheels.sh WHEELS
set -eu
for piece in "$1"/*.whl.part-*; do
  test -e "$piece" || continue
  whole=${piece%.part-*}
  test -e "$whole" && continue
  # Under another name until it is whole: what is cut off here must not be taken for the wheel.
  cat "$whole".part-* > "$whole.partial"
  if ! test -e "$whole.sha256" || test "$(sha256sum < "$whole.partial")" != "$(cat "$whole.sha256")"; then
    rm "$whole.partial"
    echo "$whole: a piece or its .sha256 is missing or damaged (docs/cuda.md)" >&2
    exit 1
  fi
  mv "$whole.partial" "$whole"
done
