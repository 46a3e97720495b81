//! Linear layers as checkpoints have them: whole tensors, or rows of one that several layers have in common.

use serde::Serialize;

use crate::values::Values;

/// Which rows of a tensor are the outputs of a layer.
///
/// ```text
/// gate of gate_up_proj    run 0..n of 2n rows                    one run
/// query of GPT-NeoX       [q k v] of each head, one after another    a run of each head, 3 · head_dim apart
/// query of GLM-4          head by head, pairs that turn are neighbours; ours are half a head apart
/// query of DeepSeek-V3    the same, and they are the last of a head; ours are the first
/// an expert of many       rows of one matrix of a stack
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RowMap {
    /// Rows of the tensor.
    pub of: usize,
    /// Where the first run begins.
    first: usize,
    /// Rows of a run.
    run: usize,
    /// From one run to the next.
    apart: usize,
    /// Of heads whose columns that turn lie otherwise in the tensor.
    turning: Option<Turning>,
    /// Whether the tensor is `[input, rows]` (GPT-2).
    pub transposed: bool,
    /// Which matrix it is, of a tensor that stacks several.
    #[serde(skip_serializing_if = "Option::is_none")]
    stacked: Option<Stacked>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Stacked {
    index: usize,
    /// How many there are.
    of: usize,
}

/// Where the columns of a head are that [`Ops::rotary`](super::Ops::rotary) turns. Ours are the first of a head, pairs (i, i + pairs).
/// Done to queries and keys alike, another order changes no score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Turning {
    /// Columns of a head.
    pub head_dim: usize,
    /// The first that turns.
    pub first: usize,
    /// How many turn, two columns each.
    pub pairs: usize,
    /// Whether pairs are (2i, 2i + 1) from there.
    pub are_neighbours: bool,
}

impl RowMap {
    /// All rows of a tensor.
    pub const fn all(rows: usize) -> Self {
        Self { of: rows, first: 0, run: rows, apart: rows, turning: None, transposed: false, stacked: None }
    }

    /// Of a tensor with `of` rows those from `first` on.
    pub const fn from(first: usize, of: usize) -> Self {
        Self { first, ..Self::all(of) }
    }

    /// The same, but only `run` of them, then `run` more that begin `apart` rows after the first, and so on.
    pub const fn in_runs(self, run: usize, apart: usize) -> Self {
        Self { run, apart, ..self }
    }

    /// The columns that turn are elsewhere in each head.
    pub const fn with_turning(self, turning: Turning) -> Self {
        Self { turning: Some(turning), ..self }
    }

    /// The first `pairs` pairs of each head are neighbours.
    pub const fn with_neighbours(self, head_dim: usize, pairs: usize) -> Self {
        self.with_turning(Turning { head_dim, first: 0, pairs, are_neighbours: true })
    }

    /// The tensor is `[input, rows]`.
    pub const fn transposed(self) -> Self {
        Self { transposed: true, ..self }
    }

    /// The tensor is a stack of `of` matrices, of which each is as told and this is one.
    pub const fn stacked(self, index: usize, of: usize) -> Self {
        Self { stacked: Some(Stacked { index, of }), ..self }
    }

    /// The place of the matrix in a stack.
    pub fn place_in_stack(&self) -> Option<usize> {
        self.stacked.map(|stacked| stacked.index)
    }

    /// How many values of the tensor are before the matrix, of rows of so many inputs.
    pub fn first_value(&self, input: usize) -> usize {
        self.place_in_stack().unwrap_or(0) * self.of * input
    }

    /// The row of an output, in its matrix.
    pub fn row(&self, output: usize) -> usize {
        let mut output = output;
        if let Some(Turning { head_dim, first, pairs, are_neighbours }) = self.turning {
            let at = output % head_dim;
            let in_head = match are_neighbours {
                true if at < 2 * pairs => first + 2 * (at % pairs) + at / pairs,
                false if at < 2 * pairs => first + at,
                _ if at < first + 2 * pairs => at - 2 * pairs,
                _ => at,
            };
            output = output - at + in_head;
        }
        self.first + output / self.run * self.apart + output % self.run
    }

    /// The rows of so many outputs, unless they are those of the matrix in its order.
    pub fn picked(&self, outputs: usize) -> Option<Vec<u32>> {
        let is_all = self.of == outputs && self.turning.is_none() && self.first == 0 && self.run >= outputs;
        (!is_all).then(|| (0..outputs).map(|output| self.row(output) as u32).collect())
    }

    /// The shape of the tensor, for a layer with so many inputs.
    pub fn shape(&self, input: usize) -> Vec<usize> {
        let matrix = if self.transposed { [input, self.of] } else { [self.of, input] };
        self.stacked.iter().map(|stacked| stacked.of).chain(matrix).collect()
    }

    /// The same of a vector that has a number for each row.
    pub fn shape_of_bias(&self) -> Vec<usize> {
        self.stacked.iter().map(|stacked| stacked.of).chain([self.of]).collect()
    }
}

/// A tensor that a layer takes rows of.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// In the checkpoint.
    pub name: &'a str,
    /// All of its values, row-major.
    pub values: &'a Values,
    /// Those that it takes.
    pub rows: RowMap,
}

impl Source<'_> {
    /// Of a bias, the numbers of so many outputs.
    pub fn numbers(&self, outputs: usize) -> Vec<f32> {
        let mut all = vec![0.0; self.rows.of];
        let first = self.rows.first_value(1);
        self.values.to_f32s(first..first + self.rows.of, &mut all);
        (0..outputs).map(|output| all[self.rows.row(output)]).collect()
    }
}

/// Weights of a linear layer as they come from a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct LinearSource<'a> {
    /// `[output, input]`
    pub weight: Source<'a>,
    /// `[output]`
    pub bias: Option<Source<'a>>,
    /// Width of the output.
    pub output: usize,
    /// Width of the input.
    pub input: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_where_checkpoints_have_them() {
        let rows = |map: RowMap, outputs: usize| map.picked(outputs);
        assert_eq!(rows(RowMap::all(4), 4), None);
        assert_eq!(rows(RowMap::all(4).transposed(), 4), None);
        assert_eq!(rows(RowMap::from(4, 6), 2), Some(vec![4, 5]));
        // keys of two heads of 2 in [q k v] of each
        assert_eq!(rows(RowMap::from(2, 12).in_runs(2, 6), 4), Some(vec![2, 3, 8, 9]));
        assert_eq!(rows(RowMap::from(1, 4).in_runs(1, 2), 2), Some(vec![1, 3]));
        // two heads of 6, of which 4 columns turn
        let of_heads = RowMap::all(12).with_neighbours(6, 2);
        assert_eq!(rows(of_heads, 12), Some(vec![0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]));
        // two heads of 6, of which the last 4 columns turn
        let turning = |are_neighbours| Turning { head_dim: 6, first: 2, pairs: 2, are_neighbours };
        let of_heads = |are_neighbours| RowMap::all(12).with_turning(turning(are_neighbours));
        assert_eq!(rows(of_heads(true), 12), Some(vec![2, 4, 3, 5, 0, 1, 8, 10, 9, 11, 6, 7]));
        assert_eq!(rows(of_heads(false), 12), Some(vec![2, 3, 4, 5, 0, 1, 8, 9, 10, 11, 6, 7]));
        // or 2 in the middle
        let middle = Turning { head_dim: 6, first: 2, pairs: 1, are_neighbours: false };
        assert_eq!(rows(RowMap::all(6).with_turning(middle), 6), Some(vec![2, 3, 0, 1, 4, 5]));
        assert_eq!(RowMap::all(6).transposed().shape(2), [2, 6]);
        let of_stack = RowMap::all(6).stacked(3, 5);
        assert_eq!((of_stack.shape(2), of_stack.first_value(2)), (vec![5, 6, 2], 36));
        assert_eq!(of_stack.transposed().shape(2), [5, 2, 6]);
        let values = Values::F32((0..10).map(|i| i as f32).collect());
        let bias = Source { name: "", values: &values, rows: RowMap::from(1, 5).in_runs(1, 2).stacked(1, 2) };
        assert_eq!(bias.numbers(2), [6.0, 8.0]);
    }
}
