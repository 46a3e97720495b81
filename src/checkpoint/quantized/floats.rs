//! Small floats: what each code means.

/// Two bits of exponent, one of mantissa, and a sign: FP4.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// OCP's E4M3 (`float8_e4m3fn`): no infinity, and NaN where all bits but the sign are set.
pub(super) fn e4m3(code: u8) -> f32 {
    match code & 0x7f {
        0x7f => f32::NAN,
        _ => small(code, 3, 7),
    }
}

/// OCP's E5M2 (`float8_e5m2`): the upper half of an `f16`.
pub(super) fn e5m2(code: u8) -> f32 {
    half::f16::from_bits(u16::from(code) << 8).to_f32()
}

/// A power of two (`float8_e8m0fnu`). 255 is NaN there, and infinite where libraries compute it from bytes: no weight is either.
pub(super) fn e8m0(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22), // 2^-127, below the smallest normal number
        255 => f32::INFINITY,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// Sign, exponent and `mantissa` bits.
fn small(code: u8, mantissa: u32, bias: i32) -> f32 {
    let exponent = i32::from((code & 0x7f) >> mantissa);
    let fraction = f32::from(code & ((1 << mantissa) - 1)) / (1 << mantissa) as f32;
    let size = match exponent {
        0 => fraction * 2.0_f32.powi(1 - bias),
        _ => (1.0 + fraction) * 2.0_f32.powi(exponent - bias),
    };
    if code & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_numbers_of_the_standards() {
        for (code, value) in [
            (0x00, 0.0),
            (0x01, 1.0 / 512.0),
            (0x07, 7.0 / 512.0),
            (0x08, 1.0 / 64.0),
            (0x38, 1.0),
            (0x39, 1.125),
            (0x7e, 448.0),
            (0xb8, -1.0),
        ] {
            assert_eq!(e4m3(code), value, "{code:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan() && e4m3(0x80).is_sign_negative());
        assert_eq!((e5m2(0x3c), e5m2(0x7b), e5m2(0x01)), (1.0, 57344.0, 2.0_f32.powi(-16)));
        assert!(e5m2(0x7c).is_infinite());
        for code in 0..255 {
            assert_eq!(f64::from(e8m0(code)), 2.0_f64.powi(i32::from(code) - 127), "{code}");
        }
    }
}
