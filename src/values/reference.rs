//! What a model answered on the references of `rewarm calibrate`: what is stored beside it, and what its traffic is held
//! against.

/// Mean and population standard deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// At least 0.
    pub std: f64,
}

/// What a variant answered on the references. What is not known has no drift.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reference {
    /// Rewards, as the variant gives them.
    pub reward: Option<Spread>,
    /// Tokens of a sample.
    pub tokens: Option<Spread>,
    /// Pearson's, of both.
    pub length_correlation: Option<f64>,
    /// Standard deviations of the members' rewards.
    pub disagreement: Option<Spread>,
    /// Share of the references that were longer than the variant's limit, and how many there were.
    pub too_long: Option<(f64, usize)>,
}
