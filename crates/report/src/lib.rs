//! Records of finished trials, and everything that is rebuilt from them alone: the tidy table, the
//! summary, the plots and the HTML page.

mod atomic;
mod by_task;
mod csv;
mod error;
#[cfg(test)]
mod fixture;
mod format;
mod group;
mod metric;
mod notes;
mod page;
mod plots;
pub mod record;
mod report;
mod setup;
mod stats;
mod store;
mod summary;
mod table;
mod view;

pub use crate::csv::runs_csv;
pub use crate::error::ReportError;
pub use crate::group::chosen_rate;
pub use crate::metric::Metric;
pub use crate::report::{Report, write_report};
pub use crate::stats::{Estimate, Paired};
pub use crate::store::RecordStore;
pub use crate::summary::{Failure, Row, Summary};
