//! Instruction, input and output, in the prompts that the Alpaca data set was published with.

use super::{Sample, optional, text};
use crate::TaskError;
use crate::read::{Row, Table};

const TASK: &str = "Below is an instruction that describes a task";
const CLOSE: &str = "Write a response that appropriately completes the request.";

pub(super) fn sample(table: &Table, row: &Row) -> Result<Sample, TaskError> {
    let instruction = text(table, row, "instruction")?;
    let prompt = match optional(table, row, "input")? {
        Some(input) => format!(
            "{TASK}, paired with an input that provides further context. {CLOSE}\n\n\
             ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
        ),
        None => format!("{TASK}. {CLOSE}\n\n### Instruction:\n{instruction}\n\n### Response:"),
    };
    Ok(Sample::Pair {
        prompt,
        completion: text(table, row, "output")?.to_string(),
    })
}
