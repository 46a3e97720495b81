//! Random numbers that are the same for a seed on every machine.

/// Knuth's MMIX generator; its upper bits are the good ones.
pub(super) struct Noise(u64);

impl Noise {
    pub(super) fn new(seed: u64) -> Self {
        let mut noise = Self(seed ^ 0x9E37_79B9_7F4A_7C15);
        // Seeds that differ in a bit start alike: their first numbers are thrown away.
        for _ in 0..4 {
            noise.next();
        }
        noise
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0
    }

    /// From 0 to below 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 to below `bound`.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }
}
