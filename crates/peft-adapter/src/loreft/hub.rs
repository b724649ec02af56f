//! LoReFT in AdapterHub's format: `architecture = "reft"`.

use peft_core::{CoreError, Fields, Foreign, Form, Geometry, Rule};
use serde_json::{Value, json};

use super::LoReft;

pub(super) fn read(fields: &mut Fields, geometry: &Geometry) -> Result<Option<LoReft>, CoreError> {
    if fields.peek("architecture") != "reft" {
        return Ok(None);
    }
    fields.allow("output_reft", &[true.into()])?;
    fields.allow("dtype", &["float32".into()])?;
    fields.ignore(&["init_weights_seed"]);
    let layers: Option<Value> = fields.take("layers")?;
    let layers = match layers {
        None => None,
        Some(Value::String(all)) if all == "all" => None,
        Some(list) => {
            let parsed: Result<Vec<usize>, _> = serde_json::from_value(list.clone());
            let expected = "`all` or a list of layers";
            Some(parsed.map_err(|_| fields.unsupported("layers", &list, expected))?)
        }
    };
    let layers = layers.filter(|layers| layers.len() < geometry.layers);
    Ok(Some(LoReft {
        r: fields.require("r")?,
        prefix_positions: fields.require("prefix_positions")?,
        suffix_positions: fields.require("suffix_positions")?,
        orthogonality: fields.require("orthogonality")?,
        subtract_projection: fields.take("subtract_projection")?.unwrap_or(true),
        tied_weights: fields.take("tied_weights")?.unwrap_or(false),
        dropout: fields.take("dropout")?.unwrap_or(0.0),
        layers,
    }))
}

pub(super) fn write(reft: &LoReft, geometry: &Geometry, name: &str) -> Foreign {
    let layers = match &reft.layers {
        None => json!("all"),
        Some(layers) => json!(layers),
    };
    let fields = json!({
        "architecture": "reft", "dropout": reft.dropout, "dtype": null, "init_weights_seed": null,
        "layers": layers, "non_linearity": null, "orthogonality": reft.orthogonality,
        "output_reft": true, "prefix_positions": reft.prefix_positions, "r": reft.r,
        "subtract_projection": reft.subtract_projection,
        "suffix_positions": reft.suffix_positions, "tied_weights": reft.tied_weights,
    });
    let mut rules = Vec::new();
    for tap in reft.places(geometry) {
        let first = reft.first_basis(tap.layer);
        for unit in 0..reft.used().len() {
            let ours = format!("{}/units.{unit}", tap.path);
            let theirs = format!("{}.refts.{name}.units.{unit}", tap.path);
            rules.extend(unit_rules(
                reft,
                &ours,
                &theirs,
                first + unit,
                geometry.width,
            ));
        }
    }
    Foreign::new(fields, rules)
}

fn unit_rules(reft: &LoReft, ours: &str, theirs: &str, basis: usize, d: usize) -> Vec<Rule> {
    let source = format!("{theirs}.learned_source");
    let mut rules = vec![
        Rule::transposed(format!("{ours}.source"), format!("{source}.weight")),
        Rule::as_is(format!("{ours}.source_bias"), format!("{source}.bias")),
    ];
    let projection = format!("{ours}.projection");
    if !reft.orthogonality {
        rules.push(Rule::transposed(
            projection,
            format!("{theirs}.projection.weight"),
        ));
        return rules;
    }
    // PyTorch's parametrisation: Householder vectors below the diagonal of the transposed matrix,
    // signs on it, and the matrix the reflections are applied to.
    let weight = format!("{theirs}.projection.parametrizations.weight");
    let original = format!("{weight}.original");
    let diagonal = Form::Diagonal { shape: [reft.r, d] };
    rules.push(Rule::transposed(projection, original.clone()));
    rules.push(Rule::new(
        format!("shared/bases.{basis}.signs"),
        original,
        diagonal,
    ));
    rules.push(Rule::as_is(
        format!("shared/bases.{basis}.base"),
        format!("{weight}.0.base"),
    ));
    rules
}
