//! The gRPC package `ami.kms.v1`, generated from `proto/ami/kms/v1/*.proto`. Nothing here is
//! written by hand; the comments of the .proto files are the documentation.

/// Messages, clients and servers of `ami.kms.v1`.
#[allow(missing_docs, clippy::all, unreachable_pub, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("ami.kms.v1");
}

include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// All descriptors of the package, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ami.kms.v1.bin"));
