//! Where a tensor's values are in a file: one after the other, or in steps, as views of PyTorch are.

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

/// A tensor in a file.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    /// Its offsets are as far apart as its values take room, and begin at the first of them.
    pub(super) info: TensorInfo,
    pub(super) view: Option<View>,
}

/// Values that are not one after the other.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Of each axis, in values.
    strides: Vec<usize>,
    /// From the first value to the end of the last.
    pub(super) bytes: usize,
}

impl From<&TensorInfo> for Extent {
    fn from(info: &TensorInfo) -> Self {
        Self { info: info.clone(), view: None }
    }
}

impl Extent {
    /// Of a tensor that begins `start` bytes into the file; `None` where it would be larger than any file.
    pub(super) fn new(dtype: Dtype, shape: Vec<usize>, strides: Vec<usize>, start: usize) -> Option<Self> {
        let size = dtype.bitsize() / 8;
        let count = shape.iter().try_fold(1_usize, |count, &axis| count.checked_mul(axis))?;
        let bytes = count.checked_mul(size)?;
        let steps = || shape.iter().zip(&strides);
        let mut dense = 1;
        let mut is_dense = true;
        for (&axis, &stride) in steps().rev() {
            is_dense &= axis == 1 || stride == dense;
            dense = dense.checked_mul(axis.max(1))?;
        }
        let end = start.checked_add(bytes)?;
        let last = steps().try_fold(0_usize, |last, (&axis, &stride)| {
            last.checked_add(axis.saturating_sub(1).checked_mul(stride)?)
        })?;
        let span = if count == 0 { 0 } else { last.checked_add(1)?.checked_mul(size)? };
        let view = (!is_dense && count > 0).then_some(View { strides, bytes: span });
        Some(Self { info: TensorInfo { dtype, shape, data_offsets: (start, end) }, view })
    }

    /// What its values take.
    pub(super) fn bytes(&self) -> usize {
        self.info.data_offsets.1 - self.info.data_offsets.0
    }

    /// Where the last byte that it needs ends.
    pub(super) fn end(&self) -> usize {
        let (start, end) = self.info.data_offsets;
        self.view.as_ref().map_or(end, |view| start + view.bytes)
    }
}

impl View {
    /// Puts the values one after the other.
    pub(super) fn gather(&self, from: &[u8], info: &TensorInfo, to: &mut [u8]) {
        let size = info.dtype.bitsize() / 8;
        let mut index = vec![0; info.shape.len()];
        let mut at = 0;
        for to in to.chunks_exact_mut(size) {
            to.copy_from_slice(&from[at * size..][..size]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < info.shape[axis] {
                    break;
                }
                at -= index[axis] * self.strides[axis];
                index[axis] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_in_steps_are_put_one_after_the_other() {
        let from: Vec<u8> = (0..24).collect();
        let gathered = |shape: &[usize], strides: &[usize], start: usize| {
            let extent = Extent::new(Dtype::U8, shape.to_vec(), strides.to_vec(), start).unwrap();
            let (first, end) = extent.info.data_offsets;
            match &extent.view {
                None => from[first..end].to_vec(),
                Some(view) => {
                    let mut to = vec![0; end - first];
                    view.gather(&from[first..extent.end()], &extent.info, &mut to);
                    to
                }
            }
        };
        assert_eq!(gathered(&[2, 3], &[3, 1], 1), [1, 2, 3, 4, 5, 6]);
        assert_eq!(gathered(&[3, 2], &[1, 3], 0), [0, 3, 1, 4, 2, 5]);
        assert_eq!(gathered(&[2, 2], &[12, 5], 2), [2, 7, 14, 19]);
        assert_eq!(gathered(&[2, 3], &[0, 1], 4), [4, 5, 6, 4, 5, 6]);
        assert_eq!(gathered(&[2, 1, 2], &[2, 7, 1], 0), [0, 1, 2, 3], "an axis of one has no steps");
        assert_eq!(gathered(&[], &[], 9), [9]);
        assert!(gathered(&[0, 3], &[3, 1], 9).is_empty());
        assert!(Extent::new(Dtype::U8, vec![2, 3], vec![0, 1], 4).unwrap().view.is_some());
        assert_eq!(Extent::new(Dtype::F64, vec![2, 2], vec![8, 2], 8).unwrap().end(), 8 + 11 * 8);
        for (shape, strides) in
            [([usize::MAX, 2], [1, 1]), ([2, 2], [usize::MAX, 1]), ([2, 2], [usize::MAX / 2, 1])]
        {
            assert!(Extent::new(Dtype::F64, shape.to_vec(), strides.to_vec(), 0).is_none());
        }
    }
}
