#!/bin/sh
# Runs a command without randomised addresses, or as it is where that is forbidden (some containers).
#
# ThreadSanitizer's runtime expects mappings in certain ranges. The kernel may place them elsewhere
# where vm.mmap_rnd_bits is above 28, and older runtimes then end with "unexpected memory mapping".
if setarch "$(uname -m)" -R true 2>/dev/null; then
  exec setarch "$(uname -m)" -R "$@"
fi
exec "$@"
