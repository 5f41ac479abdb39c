//! Writes `proto/src/generated` from the .proto files: messages, clients and servers of `ami.kms.v1`, an
//! enumeration of its calls, its descriptors, and the digest of what they were made from.

use std::{env, error::Error, fs, path::Path};

use prost::Message as _;
use prost_types::FileDescriptorSet;
use sha2::{Digest as _, Sha256};

const FILES: [&str; 11] = [
    "ami/kms/v1/audit.proto",
    "ami/kms/v1/types.proto",
    "ami/kms/v1/ciphering.proto",
    "ami/kms/v1/meters.proto",
    "ami/kms/v1/nodes.proto",
    "ami/kms/v1/replication.proto",
    "ami/kms/v1/rotation.proto",
    "ami/kms/v1/groups.proto",
    "ami/kms/v1/campaigns.proto",
    "ami/kms/v1/site.proto",
    "ami/kms/v1/approvals.proto",
];

/// What is made of them.
const GENERATED: [&str; 3] = ["ami.kms.v1.bin", "ami.kms.v1.rs", "methods.rs"];

fn main() -> Result<(), Box<dyn Error>> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let out = env::args().nth(1).map_or_else(|| proto.join("src/generated"), Into::into);
    let descriptors = protox::compile(FILES, [&proto])?;
    fs::create_dir_all(&out)?;
    fs::write(out.join("ami.kms.v1.bin"), descriptors.encode_to_vec())?;
    fs::write(out.join("methods.rs"), methods(&descriptors))?;
    tonic_prost_build::configure().bytes(".").out_dir(&out).compile_fds(descriptors)?;
    fs::write(out.join("DIGESTS"), digests(&proto, &out)?)?;
    Ok(())
}

/// The SHA-256 of each .proto file and of all that was made of them, as `sha256sum` writes it: a test holds
/// them against the files.
fn digests(proto: &Path, out: &Path) -> Result<String, Box<dyn Error>> {
    let mut lines = String::new();
    let made = GENERATED.map(|file| (out.join(file), format!("src/generated/{file}")));
    let read = FILES.map(|file| (proto.join(file), file.to_owned()));
    for (path, name) in read.into_iter().chain(made) {
        for byte in Sha256::digest(fs::read(path)?) {
            lines += &format!("{byte:02x}");
        }
        lines += &format!("  {name}\n");
    }
    Ok(lines)
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
