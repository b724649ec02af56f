//! Where a task's rows come from, and how many of them are used.

use serde::{Deserialize, Serialize};
use tasks::read::ReadOptions;
use tasks::scenario::ScenarioConfig;

/// Most examples of each split; all where not given.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limit {
    /// Of train.
    pub train: Option<usize>,
    /// Of dev.
    pub dev: Option<usize>,
    /// Of test.
    pub test: Option<usize>,
}

/// Where rows come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged, try_from = "DataTable")]
pub enum DataSource {
    /// The generated video-recommendation scenario.
    Scenario(ScenarioSource),
    /// Files, relative to the study file; may hold `${VARIABLES}`.
    Files(Files),
}

/// The keys of a source as a file states them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataTable {
    scenario: Option<u64>,
    sizes: Option<ScenarioConfig>,
    train: Option<String>,
    dev: Option<String>,
    test: Option<String>,
    read: Option<ReadOptions>,
}

impl TryFrom<DataTable> for DataSource {
    type Error = String;

    fn try_from(table: DataTable) -> Result<Self, String> {
        let files = [&table.train, &table.dev, &table.test];
        let of_files = table.read.is_some() || files.iter().any(|file| file.is_some());
        match table.scenario {
            Some(_) if of_files => {
                Err("`data` names both files and a `scenario`; expected one of \
                                        them"
                    .into())
            }
            None if table.sizes.is_some() => {
                Err("the `sizes` of `data` are those of a `scenario`, which is missing".into())
            }
            Some(scenario) => Ok(DataSource::Scenario(ScenarioSource {
                scenario,
                sizes: table.sizes.unwrap_or_default(),
            })),
            None => {
                let file = |file: Option<String>, name: &str| {
                    let needs = "`data` needs the files `train`, `dev` and `test`, or a `scenario`";
                    file.ok_or_else(|| format!("{needs}; `{name}` is missing"))
                };
                Ok(DataSource::Files(Files {
                    train: file(table.train, "train")?,
                    dev: file(table.dev, "dev")?,
                    test: file(table.test, "test")?,
                    read: table.read.unwrap_or_default(),
                }))
            }
        }
    }
}

/// A generated scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScenarioSource {
    /// Seed of the scenario.
    pub scenario: u64,
    /// Its sizes.
    #[serde(default)]
    pub sizes: ScenarioConfig,
}

/// One file a split.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// To learn from.
    pub train: String,
    /// To choose by.
    pub dev: String,
    /// To report on.
    pub test: String,
    /// How to read them, where names and first lines do not tell.
    #[serde(default)]
    pub read: ReadOptions,
}
