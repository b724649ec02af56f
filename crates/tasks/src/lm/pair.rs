//! A prompt and a completion as token ids.

use super::{Draft, LmEncoder};
use crate::TaskError;

impl LmEncoder {
    pub(super) fn pair(
        &self,
        prompt_text: String,
        completion_text: String,
    ) -> Result<Draft, TaskError> {
        // Apart from each other: the boundary is where it will be at generation, when there is a
        // prompt and nothing else.
        let (mut ids, body) = self.prompt_ids(&prompt_text)?;
        let keep = ids.len();
        ids.extend_from_slice(&body);
        let answer = ids.len();
        ids.append(&mut self.ids(&completion_text)?);
        ids.push(self.eos);
        Ok(Draft {
            loss: self.loss(vec![answer..ids.len()], ids.len()),
            ids,
            keep,
            answer,
            prompt_text,
            completion_text,
        })
    }

    /// The prompt's ids: the special tokens a model expects in front (Llama's `<s>`), which are
    /// never cut, and the text. Special tokens *behind* a text would end it before the completion
    /// starts, so they are left out.
    fn prompt_ids(&self, text: &str) -> Result<(Vec<u32>, Vec<u32>), TaskError> {
        let encoding = self
            .tokenizer
            .encode(text, true)
            .map_err(TaskError::tokenizer)?;
        let special = encoding.get_special_tokens_mask();
        let lead = special.iter().take_while(|&&mark| mark == 1).count();
        let body = self.ids(text)?;
        Ok((encoding.get_ids()[..lead].to_vec(), body))
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, TaskError> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(TaskError::tokenizer)?;
        Ok(encoding.get_ids().to_vec())
    }
}
