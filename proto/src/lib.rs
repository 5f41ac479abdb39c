//! The gRPC package `ami.kms.v1`, generated from `proto/ami/kms/v1/*.proto` by `make proto`. Nothing here
//! is written by hand but this file; the comments of the .proto files are the documentation.
//!
//! What is generated is kept, so that whoever builds the service does not build a compiler for .proto
//! files first. A test says if the files have changed since; CI generates anew and compares.

/// Messages, clients and servers of `ami.kms.v1`.
#[allow(missing_docs, clippy::all, unreachable_pub, reason = "generated")]
pub mod v1 {
    include!("generated/ami.kms.v1.rs");
}

include!("generated/methods.rs");

/// All descriptors of the package, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/ami.kms.v1.bin");

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use sha2::{Digest as _, Sha256};

    #[test]
    fn what_is_generated_is_of_the_proto_files_that_lie_here() {
        let proto = Path::new(env!("CARGO_MANIFEST_DIR"));
        let count = |dir: &str| fs::read_dir(proto.join(dir)).unwrap().count();
        let digests = include_str!("generated/DIGESTS");
        // The digests are not among them.
        let lie_here = count("ami/kms/v1") + count("src/generated") - 1;
        assert_eq!(digests.lines().count(), lie_here, "each file, and no other: run `make proto`");
        for line in digests.lines() {
            let (digest, file) = line.split_once("  ").unwrap();
            let now = Sha256::digest(fs::read(proto.join(file)).unwrap());
            assert_eq!(digest, hex::encode(now), "{file} is another one: run `make proto`");
        }
    }
}
