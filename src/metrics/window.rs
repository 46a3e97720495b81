//! Statistics of the last thousand samples or so: each weighs a thousandth less than the one after it.
//!
//! What a request brings is summed up by itself and joined in one step, so a lock around a window is held for some
//! multiplications, however many samples there are.

/// So many samples back, one weighs `1/e` of the last.
const LENGTH: f64 = 1000.0;

/// Of pairs `(x, y)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Window {
    weight: f64,
    mean: [f64; 2],
    /// Weighted sums of squares around the means, and of products.
    squares: [f64; 2],
    products: f64,
    /// Ever.
    pub(super) samples: u64,
}

impl Window {
    /// Of some pairs that weigh the same.
    pub(super) fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        pairs.fold(Self::default(), |window, (x, y)| {
            window.joined(Self { weight: 1.0, mean: [x, y], samples: 1, ..Self::default() })
        })
    }

    /// Takes pairs that came after.
    pub(super) fn take(&mut self, later: Self) {
        let fade = (-(later.samples as f64) / LENGTH).exp();
        self.weight *= fade;
        self.squares.iter_mut().for_each(|squares| *squares *= fade);
        self.products *= fade;
        *self = self.joined(later);
    }

    /// Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    fn joined(self, other: Self) -> Self {
        let weight = self.weight + other.weight;
        if weight == 0.0 {
            return self;
        }
        let (share, apart) = (other.weight / weight, self.weight * other.weight / weight);
        let far = [0, 1].map(|index| other.mean[index] - self.mean[index]);
        Self {
            weight,
            mean: [0, 1].map(|index| self.mean[index] + far[index] * share),
            squares: [0, 1]
                .map(|index| self.squares[index] + other.squares[index] + far[index] * far[index] * apart),
            products: self.products + other.products + far[0] * far[1] * apart,
            samples: self.samples + other.samples,
        }
    }

    /// Of both.
    pub(super) fn mean(&self) -> [f64; 2] {
        self.mean
    }

    /// Population standard deviations of both.
    pub(super) fn std(&self) -> [f64; 2] {
        self.squares.map(|squares| (squares / self.weight).sqrt())
    }

    /// Pearson's; none where one of both does not change.
    pub(super) fn correlation(&self) -> Option<f64> {
        let [x, y] = self.squares;
        let of = x.sqrt() * y.sqrt();
        let changes = |squares: f64, mean: f64| squares > 1e-12 * self.weight * mean * mean;
        (changes(x, self.mean[0]) && changes(y, self.mean[1]) && of > 0.0)
            .then(|| (self.products / of).clamp(-1.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_window_is_what_its_samples_say_whatever_they_come_in() {
        let pairs = [(1.0, 2.0), (3.0, 1.0), (4.0, 9.0), (1e6, 5.0), (2.0, 2.0)];
        let count = pairs.len() as f64;
        let mean =
            [pairs.iter().map(|p| p.0).sum::<f64>() / count, pairs.iter().map(|p| p.1).sum::<f64>() / count];
        let product = |f: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(f).sum::<f64>() / count;
        let (var_x, var_y) = (product(&|p| (p.0 - mean[0]).powi(2)), product(&|p| (p.1 - mean[1]).powi(2)));
        let covariance = product(&|p| (p.0 - mean[0]) * (p.1 - mean[1]));
        let window = Window::of(pairs.into_iter());
        assert!(near(window.mean()[0] / mean[0], 1.0) && near(window.mean()[1], mean[1]), "{window:?}");
        assert!(near(window.std()[0] / var_x.sqrt(), 1.0) && near(window.std()[1], var_y.sqrt()));
        assert!(near(window.correlation().unwrap(), covariance / (var_x * var_y).sqrt()));
        assert_eq!(Window::of([(1.0, 2.0), (1.0, 3.0)].into_iter()).correlation(), None, "x does not change");
        assert_eq!(Window::default().correlation(), None);
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let mut window = Window::of((0..50_000).map(|i| (100.0, f64::from(i % 7))));
        for _ in 0..100 {
            window.take(Window::of((0..100).map(|i| (f64::from(i % 2), f64::from(i % 2)))));
        }
        let ([mean, _], [std, _]) = (window.mean(), window.std());
        assert!((mean - 0.5).abs() < 0.3 && std < 6.0, "{mean} {std}");
        assert_eq!(window.samples, 60_000);
        let mut one_by_one = Window::default();
        (0..5000).for_each(|i| one_by_one.take(Window::of(std::iter::once((f64::from(i % 10), 0.0)))));
        assert!((one_by_one.mean()[0] - 4.5).abs() < 0.1 && (one_by_one.std()[0] - 2.87).abs() < 0.1);
    }
}
