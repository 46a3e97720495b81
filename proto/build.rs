//! Compiles the contract in pure Rust: no `protoc` is needed.

use std::path::PathBuf;

const PROTOS: [&str; 3] =
    ["rewarm/v1/reward.proto", "rewarm/v1/admin.proto", "inference/open_inference.proto"];

/// What the Open Inference Protocol says of a server, over gRPC and as JSON.
const JSON: [&str; 9] = [
    "ServerMetadataResponse",
    "ModelMetadataResponse",
    "ModelMetadataResponse.TensorMetadata",
    "StatisticDuration",
    "InferStatistics",
    "ModelStatistics",
    "ModelStatisticsResponse",
    "RepositoryIndexResponse",
    "RepositoryIndexResponse.ModelIndex",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::Compiler::new(["proto"])?
        .include_imports(true)
        .include_source_info(true)
        .open_files(PROTOS)?
        .file_descriptor_set();
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("rewarm_descriptor.bin");
    std::fs::write(out, prost::Message::encode_to_vec(&descriptors))?;
    // what tensors hold is not copied when it is decoded
    let mut build = tonic_prost_build::configure().bytes(".inference");
    for message in JSON {
        build = build.type_attribute(format!("inference.{message}"), "#[derive(serde::Serialize)]");
    }
    build.compile_fds(descriptors)?;
    Ok(())
}
