//! The contract, as compiled from `proto/rewarm/v1`: what [`service`](crate::service) answers and
//! [`client`](crate::client) asks; and, in [`inference`], what foreign clients ask. Documented in the `.proto` files.

#![expect(
    missing_docs,
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto files are the documentation"
)]

tonic::include_proto!("rewarm.v1");

/// The Open Inference Protocol, from `proto/inference`.
pub mod inference {
    tonic::include_proto!("inference");
}

/// The contract as a `FileDescriptorSet`, for reflection and for clients that were not compiled against it.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rewarm_descriptor.bin"));

/// A count as the wire has it, in 32 bits: the largest one, rather than what is left of a larger one.
pub(crate) fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_count_above_32_bits_is_the_largest() {
        let counts = [0, 7, u32::MAX as usize, 1 << 32, usize::MAX].map(super::count);
        assert_eq!(counts, [0, 7, u32::MAX, u32::MAX, u32::MAX]);
    }
}
