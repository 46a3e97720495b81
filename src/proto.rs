//! The contract, as compiled from `proto/rewarm/v1`: what [`service`](crate::service) answers and
//! [`client`](crate::client) asks. Documented in the `.proto` files.

#![expect(
    missing_docs,
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto files are the documentation"
)]

tonic::include_proto!("rewarm.v1");

/// The contract as a `FileDescriptorSet`, for reflection and for clients that were not compiled against it.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rewarm_descriptor.bin"));
