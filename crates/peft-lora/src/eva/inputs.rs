//! What goes into the layers of a model, of which several may read the same: query, key and value.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use peft_core::{CoreError, Site};

use super::components::{Components, Scatter};

/// The spread of what goes into every layer, gathered and decomposed once for those with one input.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    /// The first layer that reads what a layer reads, by path.
    firsts: BTreeMap<String, String>,
    scatters: BTreeMap<String, Scatter>,
    /// What the layers of a block that came before in this batch were given, where no other had been.
    seen: Vec<(String, Tensor<3>)>,
    block: usize,
}

impl Inputs {
    /// Adds what goes into a layer in a batch, see [`Scatter::add`]. Layers whose input is the same in
    /// the first batch are taken for such that always have one, as HF PEFT takes them.
    pub(super) fn add(&mut self, site: &Site, x: Tensor<3>, counted: Tensor<2>) {
        let first = match self.firsts.get(&site.path) {
            Some(first) => first.clone(),
            None => {
                let first = self.first(site, &x);
                self.firsts.insert(site.path.clone(), first.clone());
                first
            }
        };
        if first == site.path {
            self.scatters.entry(first).or_default().add(x, counted);
        }
    }

    /// The layer of the same block that was given the same; the layer itself where none was.
    fn first(&mut self, site: &Site, x: &Tensor<3>) -> String {
        if self.block != site.layer {
            self.seen.clear();
            self.block = site.layer;
        }
        let same = |(_, other): &&(String, Tensor<3>)| {
            other.dims() == x.dims() && other.clone().equal(x.clone()).all().into_scalar::<bool>()
        };
        match self.seen.iter().find(same) {
            Some((path, _)) => path.clone(),
            None => {
                self.seen.push((site.path.clone(), x.clone()));
                site.path.clone()
            }
        }
    }

    /// How many different inputs there are.
    #[cfg(test)]
    pub(super) fn gathered(&self) -> usize {
        self.scatters.len()
    }

    /// The components of every layer, as many as `most` says.
    ///
    /// # Errors
    /// See [`Scatter::components`].
    pub(super) fn components(
        mut self,
        sites: &[&Site],
        most: impl Fn(&Site) -> usize,
    ) -> Result<Vec<Components>, CoreError> {
        self.seen.clear();
        let mut found: BTreeMap<String, Components> = BTreeMap::new();
        let mut all = Vec::new();
        for site in sites {
            let first = self.firsts.get(&site.path).unwrap_or(&site.path);
            let components = match found.get(first) {
                Some(known) => known.clone(),
                None => {
                    let scatter = self.scatters.remove(first).unwrap_or_default();
                    scatter.components(site, most(site))?
                }
            };
            found.insert(first.clone(), components.clone());
            all.push(components);
        }
        Ok(all)
    }
}
