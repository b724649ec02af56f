//! AdapterHub's folders of several adapters: `adapter_setup.json`, a folder for each adapter, one
//! for the fusion of them (named by theirs, with commas), and the head. Without the file, a folder
//! that holds a fusion says by that what it is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use peft_core::exchange::{collect, export, import, restore};
use peft_core::state::{self, Tensors};
use peft_core::{Fields, Geometry, Host, Init, Rule};
use serde_json::{Map, Value, json};

use super::{Base, Fitted, Opened, files, fresh, hub};
use crate::heads::Heads;
use crate::registry::{Registry, part};

const SETUP: &str = "adapter_setup.json";
const FUSION_CONFIG: &str = "adapter_fusion_config.json";
const FUSION: &str = "model_adapter_fusion.safetensors";
const PICKLED_FUSION: &str = "pytorch_model_adapter_fusion.bin";
/// The key under which an opened setup keeps its block, and which no single adapter has.
const BLOCK: &str = "adapter_setup";

/// Whether an opened configuration is that of a setup.
pub(super) fn is_one(config: &Map<String, Value>) -> bool {
    config.contains_key(BLOCK)
}

/// The configuration of a setup; none where the folder holds none.
pub(super) fn config(folder: &Path) -> Result<Option<Map<String, Value>>> {
    let file = folder.join(SETUP);
    if file.exists() {
        return files::json(&file).map(Some);
    }
    let Some(fusion) = fusion_folder(folder)? else {
        return Ok(None);
    };
    let fusion = files::json(&fusion.join(FUSION_CONFIG))?;
    let names = fusion.get("adapter_names").and_then(Value::as_array);
    let names = names.with_context(|| format!("`{FUSION_CONFIG}` has no `adapter_names`"))?;
    let child = |name: &Value| json!({"type": "single", "children": [name]});
    let children: Vec<_> = names.iter().map(child).collect();
    let block = json!({"type": "Fuse", "children": children});
    Ok(Some(Map::from_iter([(BLOCK.to_string(), block)])))
}

/// The folder inside this one that holds a fusion.
fn fusion_folder(folder: &Path) -> Result<Option<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(None);
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.join(FUSION_CONFIG).exists() {
            found.push(path);
        }
    }
    ensure!(
        found.len() < 2,
        "`{}` holds {} fusions, expected one",
        folder.display(),
        found.len()
    );
    Ok(found.pop())
}

/// The type of a block and the names of the adapters in it.
fn block(config: &Map<String, Value>) -> Result<(&str, Vec<&str>)> {
    let block = &config[BLOCK];
    let kind = block["type"].as_str();
    let kind = kind.with_context(|| format!("`{BLOCK}` of `{SETUP}` has no `type`"))?;
    let children = block["children"].as_array();
    let children = children.with_context(|| format!("`{BLOCK}` of `{SETUP}` has no `children`"))?;
    let name = |child: &'_ Value| -> Result<String> {
        let name = child["children"][0].as_str();
        match (child["type"].as_str(), name) {
            (Some("single"), Some(name)) => Ok(name.to_string()),
            (Some(inner), _) => bail!("a `{inner}` inside a `{kind}` is not supported"),
            (None, _) => bail!("a child of the `{kind}` in `{SETUP}` has no `type`"),
        }
    };
    for child in children {
        let name = name(child)?;
        // It names a folder inside the setup's.
        hub::check_name(&name)?;
    }
    let names = children.iter().filter_map(|c| c["children"][0].as_str());
    Ok((kind, names.collect()))
}

/// The tensors of all adapters, of their fusion and of the head.
pub(super) fn tensors(folder: &Path, config: &Map<String, Value>) -> Result<Tensors> {
    let (_, names) = block(config)?;
    let mut tensors = head(folder, &names)?;
    for name in names {
        tensors.extend(hub::own_tensors(&folder.join(name))?);
    }
    if let Some(fusion) = fusion_folder(folder)? {
        let own = files::tensors(&fusion, FUSION, PICKLED_FUSION)?;
        let place = || format!("`{}` has no `{FUSION}`", fusion.display());
        tensors.extend(own.with_context(place)?);
    }
    Ok(tensors)
}

/// The head beside the setup, or else that of its adapters.
fn head(folder: &Path, names: &[&str]) -> Result<Tensors> {
    let own = hub::head_tensors(folder)?;
    if !own.is_empty() {
        return Ok(own);
    }
    let heads = names
        .iter()
        .map(|name| hub::head_tensors(&folder.join(name)));
    let mut heads = heads.collect::<Result<Vec<_>>>()?;
    heads.retain(|head| !head.is_empty());
    heads.dedup();
    ensure!(
        heads.len() < 2,
        "the adapters in `{}` have heads of their own, which differ; copy the `model_head` to use, \
         with its `head_config.json`, beside the adapters' folders",
        folder.display()
    );
    Ok(heads.pop().unwrap_or_default())
}

/// The head's class names, from beside the setup or from an adapter.
fn labels(folder: &Path, names: &[String]) -> Result<Vec<String>> {
    let folders = names.iter().map(|name| folder.join(name));
    for folder in [folder.to_path_buf()].into_iter().chain(folders) {
        let labels = hub::labels(&folder)?;
        if !labels.is_empty() {
            return Ok(labels);
        }
    }
    Ok(Vec::new())
}

pub(super) fn fit(
    opened: Opened,
    base: &Base,
    registry: &Registry,
    init: &mut Init,
) -> Result<Fitted> {
    let (folder, geometry) = (&opened.folder, base.model().geometry());
    let (kind, names) = block(&opened.config)?;
    let mut parts = Vec::new();
    for name in &names {
        let file = folder.join(name).join(files::CONFIG);
        let mut about = files::json(&file)?;
        let file = file.display().to_string();
        let Some(Value::Object(config)) = about.remove("config") else {
            bail!("`config` of `{file}` is no JSON table");
        };
        let fields = Fields::new(file, config);
        let (kind, config, _) = registry.from_adapter_hub(fields, &geometry, hub::HARMLESS)?;
        parts.push(part(kind, &config));
    }
    let mut fields = Map::from_iter([
        ("type".to_string(), json!(kind)),
        ("parts".to_string(), Value::Array(parts)),
    ]);
    if let Some(Value::Object(kwargs)) = opened.config[BLOCK].get("kwargs") {
        fields.extend(kwargs.clone());
    }
    let fusion = fusion_folder(folder)?;
    ensure!(
        fusion.is_some() == (kind == "Fuse"),
        "`{}`: the setup is a `{kind}`, the folder holds {} fusion",
        folder.display(),
        if fusion.is_some() { "a" } else { "no" }
    );
    let mut fusion_name = names.join(",");
    if let Some(fusion) = fusion {
        let mut about = files::json(&fusion.join(FUSION_CONFIG))?;
        if let Some(Value::Object(config)) = about.remove("config") {
            fields.extend(config);
        }
        if let Some(Value::String(name)) = about.remove("name") {
            fusion_name = name;
        }
    }
    let file = folder.display().to_string();
    let fields = Fields::new(file.clone(), fields);
    let method = registry.from_adapter_hub(fields, &geometry, hub::HARMLESS)?;
    let names: Vec<String> = names.into_iter().map(String::from).collect();
    let labels = labels(folder, &names)?;
    let tensors = hub::without_base_head(opened.tensors, base.model())?;
    let tensors = hub::with_body(tensors, &geometry);
    let mut fitted = fresh(method, &tensors, base, init)?;
    fitted.card.heads = Heads::new(None, labels);
    let rules: Vec<Rule> = Rules::new(&fitted, &names, &fusion_name)?.all();
    let ours = import(tensors, &rules, &file)?;
    fitted.model = restore(fitted.model, ours, &file)?;
    Ok(fitted)
}

/// The tensors of a setup, and the fields that go with them.
struct Rules {
    parts: Vec<(Map<String, Value>, Vec<Rule>)>,
    block: Map<String, Value>,
    own: Vec<Rule>,
    head: Vec<Rule>,
}

impl Rules {
    fn new(fitted: &Fitted, names: &[String], fusion: &str) -> Result<Self> {
        let (geometry, method) = (fitted.geometry(), &fitted.method);
        let no_form = |kind: &str| {
            format!("AdapterHub has no form of `{kind}` with this configuration and these parts")
        };
        let own = method.adapter_hub(&geometry, fusion);
        let own = own.with_context(|| no_form(&fitted.card.kind))?;
        let mut parts = Vec::new();
        for (index, (part, name)) in method.parts().iter().zip(names).enumerate() {
            let form = part.method().adapter_hub(&geometry, name);
            let form = form.filter(|_| part.method().parts().is_empty());
            let form = form.with_context(|| no_form(part.kind()))?;
            let placed = form.rules.into_iter().map(|rule| in_part(index, rule));
            parts.push((form.fields, placed.collect()));
        }
        Ok(Self {
            parts,
            block: own.fields,
            own: own.rules,
            head: hub::head_rules(&geometry).collect(),
        })
    }

    fn all(&self) -> Vec<Rule> {
        let parts = self.parts.iter().flat_map(|(_, rules)| rules);
        let rules = parts.chain(&self.own).chain(&self.head);
        rules.cloned().collect()
    }
}

/// The rule for a tensor of a part where that lies in the composition.
fn in_part(index: usize, rule: Rule) -> Rule {
    let place = match rule.place.split_once('/') {
        Some((module, inside)) => format!("{module}/parts.{index}.{inside}"),
        None => rule.place,
    };
    Rule { place, ..rule }
}

pub(super) fn write(fitted: &Fitted, base: &Value, name: &str, folder: &Path) -> Result<()> {
    hub::check_name(name)?;
    let count = fitted.method.parts().len();
    let names: Vec<String> = (1..=count).map(|at| format!("{name}_{at}")).collect();
    let fusion = names.join(",");
    let geometry = fitted.geometry();
    let rules = Rules::new(fitted, &names, &fusion)?;
    let ours = collect(&fitted.model, &rules.all())?;
    for (name, (fields, rules)) in names.iter().zip(&rules.parts) {
        let folder = folder.join(name);
        let about = hub::about(base, &geometry, name, fields.clone());
        state::save(
            &export(&ours, rules)?,
            Default::default(),
            &folder.join(hub::TENSORS),
        )?;
        files::write_json(&folder.join(files::CONFIG), &about)?;
    }
    if let Some(config) = rules.block.get("config") {
        let folder = folder.join(&fusion);
        let about = fusion_about(base, &geometry, &names, config);
        state::save(
            &export(&ours, &rules.own)?,
            Default::default(),
            &folder.join(FUSION),
        )?;
        files::write_json(&folder.join(FUSION_CONFIG), &about)?;
    }
    let head = export(&ours, &rules.head)?;
    let child = |name: &String| json!({"type": "single", "children": [name]});
    let children: Vec<_> = names.iter().map(child).collect();
    let about = json!({
        BLOCK: {"type": rules.block["type"], "children": children},
        "head_setup": (!head.is_empty()).then_some(true),
        "version": hub::VERSION,
    });
    if let Value::Object(about) = about {
        files::write_json(&folder.join(SETUP), &about)?;
    }
    hub::write_head(&head, fitted, base, folder)
}

fn fusion_about(
    base: &Value,
    geometry: &Geometry,
    names: &[String],
    config: &Value,
) -> Map<String, Value> {
    let mut about = hub::common(base, geometry);
    about.insert("adapter_names".into(), json!(names));
    about.insert("config".into(), config.clone());
    about.insert("name".into(), names.join(",").into());
    about
}
