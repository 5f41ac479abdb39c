//! Generates `ami.kms.v1` from the .proto files, without an installed `protoc`.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 5] = [
    "ami/kms/v1/audit.proto",
    "ami/kms/v1/types.proto",
    "ami/kms/v1/ciphering.proto",
    "ami/kms/v1/meters.proto",
    "ami/kms/v1/site.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(FILES, ["."])?;
    #[expect(clippy::disallowed_methods, reason = "Cargo tells a build script by the environment")]
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("ami.kms.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=ami");
    Ok(())
}
