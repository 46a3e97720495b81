//! How members' weights lie to each other: distances, angles, and how far an average of them is from each.
//!
//! All of it follows from the dot products of `N + 1` vectors: a reference (the pretrain where there is one, else the
//! first member) and what each member adds to it. Differences are taken first: members of one pretrain are so alike that
//! the difference of their squared norms would be rounding noise.

use std::ops::Range;

use rewarm_kernels::Isa;
use rewarm_kernels::Loops;

use crate::values::Values;

/// Values that one thread takes at a time; the products of such blocks are added in their order, so that a result does
/// not depend on the number of threads.
pub(super) const BLOCK: usize = 1 << 16;
/// And of those, what is in the first-level cache together.
const CHUNK: usize = 512;
/// Sums that run side by side, as vectors do.
const LANES: usize = 8;

/// Dot products of a reference and what each of N members adds to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Likeness {
    /// `[N + 1, N + 1]`; the first is the reference.
    products: Vec<f64>,
    vectors: usize,
}

impl Likeness {
    /// Of nothing: a sum begins with it.
    pub fn of_nothing(members: usize) -> Self {
        Self { products: vec![0.0; (members + 1) * (members + 1)], vectors: members + 1 }
    }

    /// Of tensors of numbers, all of one size.
    pub fn of(reference: &Values, members: &[&Values]) -> Self {
        let count = reference.count();
        let blocks = (0..count).step_by(BLOCK).map(|start| start..count.min(start + BLOCK));
        blocks.fold(Self::of_nothing(members.len()), |mut sum, block| {
            sum.add(&Self::of_block(reference, members, block));
            sum
        })
    }

    /// Of one block of them.
    pub(super) fn of_block(reference: &Values, members: &[&Values], block: Range<usize>) -> Self {
        let mut sum = Self::of_nothing(members.len());
        // one that is the reference adds nothing to it
        let differs = |member: &&Values| !std::ptr::eq(*member, reference);
        let places: Vec<usize> =
            members.iter().zip(1..).filter(|(member, _)| differs(member)).map(|(_, at)| at).collect();
        let mut vectors = vec![[0.0; CHUNK]; places.len() + 1];
        for start in block.clone().step_by(CHUNK) {
            let range = start..block.end.min(start + CHUNK);
            Isa::best().loops(AddProducts {
                reference,
                members,
                places: &places,
                range,
                vectors: &mut vectors,
                sum: &mut sum,
            });
        }
        sum
    }

    /// Takes in other tensors of the same members.
    pub fn add(&mut self, other: &Self) {
        self.products.iter_mut().zip(&other.products).for_each(|(sum, product)| *sum += product);
    }

    /// The dot product of two weighted sums of the vectors.
    fn product(&self, a: &[f64], b: &[f64]) -> f64 {
        let row = |i: usize| {
            self.products[i * self.vectors..][..self.vectors].iter().zip(b).map(|(p, b)| p * b).sum::<f64>()
        };
        a.iter().enumerate().map(|(i, a)| if *a == 0.0 { 0.0 } else { a * row(i) }).sum()
    }

    fn norm(&self, a: &[f64]) -> f64 {
        self.product(a, a).max(0.0).sqrt()
    }

    fn cosine_of(&self, a: &[f64], b: &[f64]) -> Option<f64> {
        let norms = self.norm(a) * self.norm(b);
        (norms > 0.0).then(|| (self.product(a, b) / norms).clamp(-1.0, 1.0))
    }

    /// What a member adds, `[N + 1]` weights.
    fn addition(&self, member: usize) -> Vec<f64> {
        (0..self.vectors).map(|i| f64::from(u8::from(i == member + 1))).collect()
    }

    fn member(&self, member: usize) -> Vec<f64> {
        let mut weights = self.addition(member);
        weights[0] = 1.0;
        weights
    }

    /// The average of the members.
    fn average(&self, coefficients: &[f64]) -> Vec<f64> {
        std::iter::once(coefficients.iter().sum()).chain(coefficients.iter().copied()).collect()
    }

    /// Between two members; `None` if one of them is zero.
    pub fn cosine(&self, a: usize, b: usize) -> Option<f64> {
        self.cosine_of(&self.member(a), &self.member(b))
    }

    /// Of two members, relative to the first's size; `None` if that is zero.
    pub fn relative_distance(&self, a: usize, b: usize) -> Option<f64> {
        let size = self.norm(&self.member(a));
        (size > 0.0).then(|| self.norm(&difference(&self.member(a), &self.member(b))) / size)
    }

    /// The size of what a member adds to the reference: its task vector, where that is the pretrain.
    pub fn addition_norm(&self, member: usize) -> f64 {
        self.norm(&self.addition(member))
    }

    /// Between what two members add; `None` if one of them adds nothing.
    pub fn addition_cosine(&self, a: usize, b: usize) -> Option<f64> {
        self.cosine_of(&self.addition(a), &self.addition(b))
    }

    /// The size of what the average adds to the reference.
    pub fn average_addition_norm(&self, coefficients: &[f64]) -> f64 {
        let mut average = self.average(coefficients);
        average[0] -= 1.0;
        self.norm(&average)
    }

    /// How far a member is from the average.
    pub fn distance_from_average(&self, member: usize, coefficients: &[f64]) -> f64 {
        self.norm(&difference(&self.member(member), &self.average(coefficients)))
    }

    /// The size of the average.
    pub fn average_norm(&self, coefficients: &[f64]) -> f64 {
        self.norm(&self.average(coefficients))
    }

    /// The size of the reference.
    pub fn reference_norm(&self) -> f64 {
        self.products[0].sqrt()
    }
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// Adds the products of one chunk.
struct AddProducts<'a> {
    reference: &'a Values,
    members: &'a [&'a Values],
    /// Of those that differ from the reference, where they are in the products.
    places: &'a [usize],
    range: Range<usize>,
    /// Room for the reference and as many differences.
    vectors: &'a mut [[f64; CHUNK]],
    sum: &'a mut Likeness,
}

impl Loops for AddProducts<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Self { reference, members, places, range, vectors, sum } = self;
        let length = range.len();
        let (first, others) = vectors.split_first_mut().expect("there is a reference");
        reference.to_f64s(range.clone(), &mut first[..length]);
        for (vector, place) in others.iter_mut().zip(places) {
            members[place - 1].to_f64s(range.clone(), &mut vector[..length]);
            vector.iter_mut().zip(&*first).for_each(|(value, reference)| *value -= reference);
        }
        // what is beyond the end must not count
        vectors.iter_mut().for_each(|vector| vector[length..].fill(0.0));
        let place = |vector: usize| if vector == 0 { 0 } else { places[vector - 1] };
        let mut add = |a: usize, b: usize, product: f64| {
            let (a, b) = (place(a), place(b));
            sum.products[a * sum.vectors + b] += product;
            if a != b {
                sum.products[b * sum.vectors + a] += product;
            }
        };
        for (i, a) in vectors.iter().enumerate() {
            let (fours, rest) = vectors[i..].as_chunks::<4>();
            for (group, [b, c, d, e]) in fours.iter().enumerate() {
                let products = dots(a, [b, c, d, e]);
                (0..4).for_each(|at| add(i, i + 4 * group + at, products[at]));
            }
            let done = i + 4 * fours.len();
            rest.iter().enumerate().for_each(|(at, b)| add(i, done + at, dots(a, [b])[0]));
        }
    }
}

/// The dot products of one vector and some: side by side, so that none waits for its own last sum.
#[inline(always)]
fn dots<const N: usize>(a: &[f64; CHUNK], others: [&[f64; CHUNK]; N]) -> [f64; N] {
    let a = a.as_chunks::<LANES>().0;
    let others = others.map(|other| other.as_chunks::<LANES>().0);
    let mut sums = [[0.0; LANES]; N];
    for (at, a) in a.iter().enumerate() {
        for (sums, other) in sums.iter_mut().zip(&others) {
            let b = &other[at];
            for lane in 0..LANES {
                sums[lane] += a[lane] * b[lane];
            }
        }
    }
    sums.map(|sums| sums.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the plainest words, with vectors of a size that is no multiple of anything.
    #[test]
    fn distances_and_angles_are_those_of_the_vectors() {
        let count = BLOCK + CHUNK + 3;
        let value = |seed: u64| {
            let hash = blake3::hash(&seed.to_le_bytes());
            f64::from(u32::from_le_bytes(*hash.as_bytes().first_chunk().unwrap())) / 2.0_f64.powi(31) - 1.0
        };
        let base: Vec<f64> = (0..count as u64).map(value).collect();
        let members: Vec<Vec<f64>> = (1..4)
            .map(|m| base.iter().zip(0..).map(|(x, i)| x + 0.01 * value(m << 32 | i)).collect())
            .collect();
        let coefficients = [0.5, 0.3, 0.2];
        let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let minus = difference;
        let cosine =
            |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>() / norm(a) / norm(b);
        let average: Vec<f64> =
            (0..count).map(|i| coefficients.iter().zip(&members).map(|(c, m)| c * m[i]).sum()).collect();

        let stored: Vec<Values> = members.iter().map(|m| Values::F64(m.clone())).collect();
        let likeness = Likeness::of(&Values::F64(base.clone()), &stored.iter().collect::<Vec<_>>());
        let close = |ours: f64, expected: f64| {
            assert!((ours - expected).abs() < 1e-11 * expected.abs(), "{ours} {expected}");
        };
        close(likeness.cosine(0, 2).unwrap(), cosine(&members[0], &members[2]));
        close(
            likeness.relative_distance(0, 1).unwrap(),
            norm(&minus(&members[0], &members[1])) / norm(&members[0]),
        );
        close(likeness.addition_norm(1), norm(&minus(&members[1], &base)));
        close(
            likeness.addition_cosine(1, 2).unwrap(),
            cosine(&minus(&members[1], &base), &minus(&members[2], &base)),
        );
        close(likeness.average_addition_norm(&coefficients), norm(&minus(&average, &base)));
        close(likeness.distance_from_average(2, &coefficients), norm(&minus(&members[2], &average)));
        close(likeness.average_norm(&coefficients), norm(&average));
        close(likeness.reference_norm(), norm(&base));
    }

    #[test]
    fn members_that_are_almost_equal_are_told_apart() {
        let base = Values::F64(vec![1e3; 4096]);
        let near = Values::F64(vec![1e3 + 1e-9; 4096]);
        let likeness = Likeness::of(&base, &[&base, &near, &base]);
        let distance = likeness.relative_distance(0, 1).unwrap();
        assert!((distance - 1e-12).abs() < 1e-15, "{distance:e}"); // 1e3 + 1e-9 is itself rounded, by 6e-14
        assert_eq!(likeness.relative_distance(0, 2), Some(0.0));
        assert_eq!(likeness.addition_cosine(0, 1), None, "the first adds nothing");
    }
}
