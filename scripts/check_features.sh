#!/usr/bin/env bash
# Checks that every selection of packages builds Burn with the same features (see crates/workspace-hack).
set -euo pipefail
cd "$(dirname "$0")/.."
features() { cargo tree --offline -e normal,build,dev --prefix none -f '{p} {f}' "$@" | sed 's/ (\*)//' | sort -u; }
features --workspace >target/features-all.txt
for package in kernels peft-core peft-lora bench; do
  if missing=$(features -p "$package" | comm -13 target/features-all.txt - | grep -v '^$'); then
    echo "package \`$package\` selects other features than the workspace:"
    echo "$missing"
    echo "add them to crates/workspace-hack/Cargo.toml"
    exit 1
  fi
done
