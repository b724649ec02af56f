//! Holds no code: unifies the features of dependencies across the workspace; see `Cargo.toml`.
