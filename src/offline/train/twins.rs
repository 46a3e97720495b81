//! Members that learnt the same: their average is no other model than either of them.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;

use crate::checkpoint::Checkpoint;
use crate::merge::likeness::Likeness;
use crate::values::Values;

/// What two members learnt points the same way where its cosine is above this: they are a degree and a half apart or less.
const ALIKE: f64 = 0.9995;

/// Two members that are copies of each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Twins {
    /// Their places in the list.
    pub(super) members: [usize; 2],
    /// Of what each adds to the start; none where both add nothing.
    pub(super) cosine: Option<f64>,
}

/// Compares what members, which all have the tensors of `start`, add to it; a tensor at a time.
pub(super) fn find(start: &Path, members: &[PathBuf]) -> anyhow::Result<Vec<Twins>> {
    if members.len() < 2 {
        return Ok(Vec::new());
    }
    let open = |path: &Path| Checkpoint::open(path).with_context(|| format!("read {}", path.display()));
    let start = open(start)?;
    let members: Vec<Checkpoint> = members.iter().map(|path| open(path)).collect::<anyhow::Result<_>>()?;
    let mut likeness = Likeness::of_nothing(members.len());
    for name in start.names() {
        let reference = start.read(name)?.values;
        let values: Vec<Values> =
            members.iter().map(|member| Ok(member.read(name)?.values)).collect::<anyhow::Result<_>>()?;
        likeness.add(&Likeness::of(&reference, &values.iter().collect::<Vec<_>>()));
    }
    let norms: Vec<f64> = (0..members.len()).map(|member| likeness.addition_norm(member)).collect();
    let pairs = (0..members.len()).flat_map(|one| (one + 1..members.len()).map(move |other| [one, other]));
    let twins = pairs.filter_map(|members @ [one, other]| {
        let cosine = likeness.addition_cosine(one, other);
        let is_nothing = norms[one] == 0.0 && norms[other] == 0.0;
        let is_alike = cosine.is_some_and(|cosine| cosine > ALIKE);
        (is_nothing || is_alike).then_some(Twins { members, cosine })
    });
    Ok(twins.collect())
}
