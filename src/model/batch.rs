//! Packs sequences: one run of tokens with offsets, never padded.

/// One sequence of token ids for a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// `[tokens]`, never empty.
    pub token_ids: Vec<u32>,
    /// `[tokens]`: token types (segments); zeros for models without.
    pub type_ids: Vec<u32>,
}

/// Several sequences, end to end.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedBatch {
    token_ids: Vec<u32>,
    type_ids: Vec<u32>,
    offsets: Vec<usize>,
}

impl PackedBatch {
    /// Packs `sequences` in their order. None may be empty.
    pub fn pack<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> Self {
        let mut batch = Self { token_ids: Vec::new(), type_ids: Vec::new(), offsets: vec![0] };
        for sequence in sequences {
            debug_assert!(!sequence.token_ids.is_empty(), "an empty sequence has no reward");
            debug_assert_eq!(sequence.token_ids.len(), sequence.type_ids.len());
            batch.token_ids.extend_from_slice(&sequence.token_ids);
            batch.type_ids.extend_from_slice(&sequence.type_ids);
            batch.offsets.push(batch.token_ids.len());
        }
        batch
    }

    /// All token ids, `[tokens]`.
    pub fn token_ids(&self) -> &[u32] {
        &self.token_ids
    }

    /// All token types, `[tokens]`.
    pub fn type_ids(&self) -> &[u32] {
        &self.type_ids
    }

    /// Where each sequence starts, and the end of the last: `[batch + 1]`.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// How many sequences.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many tokens, of all sequences together.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// The token ids of each sequence, in order.
    pub fn sequences(&self) -> impl Iterator<Item = &[u32]> {
        self.offsets.windows(2).map(|ends| &self.token_ids[ends[0]..ends[1]])
    }
}
