//! Generates `ami.kms.v1` from the .proto files, without an installed `protoc`.

use std::{env, fs, path::PathBuf};

use prost::Message as _;
use prost_types::FileDescriptorSet;

const FILES: [&str; 6] = [
    "ami/kms/v1/audit.proto",
    "ami/kms/v1/types.proto",
    "ami/kms/v1/ciphering.proto",
    "ami/kms/v1/meters.proto",
    "ami/kms/v1/site.proto",
    "ami/kms/v1/approvals.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(FILES, ["."])?;
    #[expect(clippy::disallowed_methods, reason = "Cargo tells a build script by the environment")]
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("ami.kms.v1.bin"), descriptors.encode_to_vec())?;
    fs::write(out_dir.join("methods.rs"), methods(&descriptors))?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=ami");
    Ok(())
}

/// An enum of all calls, so that whoever must decide about each can do it in a `match`.
fn methods(set: &FileDescriptorSet) -> String {
    let mut variants = String::new();
    let (mut all, mut names, mut paths, mut streams) =
        (String::new(), String::new(), String::new(), String::new());
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let (package, service, name) = (file.package(), service.name(), method.name());
                let variant = format!("{service}{name}");
                variants += &format!("/// `{service}/{name}`.\n{variant},\n");
                all += &format!("Self::{variant},\n");
                names += &format!("Self::{variant} => \"{service}/{name}\",\n");
                paths += &format!("\"/{package}.{service}/{name}\" => Some(Self::{variant}),\n");
                let is_stream = method.client_streaming() || method.server_streaming();
                streams += &format!("Self::{variant} => {is_stream},\n");
            }
        }
    }
    format!(
        "/// Every call of the package.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]\n\
         pub enum Method {{\n{variants}}}\n\
         impl Method {{\n\
         /// In the order of the .proto files.\n\
         pub const ALL: &'static [Self] = &[\n{all}];\n\
         /// Service and call, as in `Ciphering/Decrypt`.\n\
         pub const fn name(self) -> &'static str {{\nmatch self {{\n{names}}}\n}}\n\
         /// The call with this HTTP path.\n\
         pub fn of_path(path: &str) -> Option<Self> {{\nmatch path {{\n{paths}_ => None,\n}}\n}}\n\
         /// Whether messages follow each other, one way or both.\n\
         pub const fn is_stream(self) -> bool {{\nmatch self {{\n{streams}}}\n}}\n\
         }}\n"
    )
}
