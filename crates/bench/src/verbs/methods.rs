//! `methods`: what the registry holds.

use anyhow::Result;
use clap::Args;

use crate::cli::print;
use crate::registry::Registry;

/// Arguments of `methods`.
#[derive(Args)]
pub struct Methods {
    /// Show one method with an example configuration.
    #[arg(long)]
    kind: Option<String>,
    /// Print the table in Markdown, as the README has it.
    #[arg(long)]
    markdown: bool,
}

/// The keys of a configuration that have a value: TOML has no null.
fn given(mut config: serde_json::Value) -> serde_json::Value {
    if let Some(table) = config.as_object_mut() {
        table.retain(|_, value| !value.is_null());
    }
    config
}

impl Methods {
    pub(crate) fn run(self, registry: &Registry) -> Result<()> {
        if self.markdown {
            return print(&registry.table());
        }
        let Some(kind) = &self.kind else {
            for entry in registry.entries() {
                let info = entry.info;
                print(&format!(
                    "{:<10} {:<18} {}\n",
                    info.kind, info.name, info.formula
                ))?;
            }
            return Ok(());
        };
        let entry = registry.entry(kind)?;
        let info = entry.info;
        let merges = if info.mergeable { "yes" } else { "no" };
        print(&format!(
            "{}\npaper:      {}\nseam:       {}\nparameters: {}\nmerges:     {merges}\nstorage:    {}\n\n[[method]]\nkind = \"{}\"\n{}",
            info.name,
            info.paper,
            info.seam,
            info.formula,
            entry.storages(registry),
            info.kind,
            toml::to_string(&given(entry.example()))?
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_every_method_is_toml_that_the_method_reads() {
        let registry = Registry::builtin();
        for entry in registry.entries() {
            let text = toml::to_string(&given(entry.example())).unwrap();
            let config: serde_json::Value = toml::from_str(&text).unwrap();
            registry.parse(entry.info.kind, &config).unwrap();
        }
    }
}
