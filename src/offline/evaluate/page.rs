//! An evaluation as one web page that needs nothing else.

use crate::offline::evaluate::evaluation::Evaluation;

/// The page.
pub fn page(evaluation: &Evaluation) -> anyhow::Result<String> {
    Ok(format!("{evaluation:?}"))
}
