//! Sealed imports as operators do them: a signing key that the site knows, a file with keys in clear,
//! `ami-tool site import-key`, `meter seal`, `meter import`.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
};

use dlms::{
    Envelope, FreshCounter, GeneralCipheringAad, Keys, Protection, SecurityControl, Suite,
    SystemTitle,
};
use rcgen::KeyPair;

use crate::{AmiTool, Setting, settings::quoted, tool::ToolError};

/// The name that the site knows the signing key by.
pub const SIGNER: &str = "provisioning";

/// The keys of one made-up meter.
#[derive(Clone, Copy)]
pub struct MadeUp {
    /// Its number; names and title follow from it.
    pub number: u64,
    /// Global unicast encryption key.
    pub guek: [u8; 16],
    /// Global authentication key.
    pub gak: [u8; 16],
}

impl MadeUp {
    /// Its title on the wire.
    pub fn title(&self) -> SystemTitle {
        SystemTitle::new((0x5345_4100_0000_0000 | self.number).to_be_bytes())
    }

    /// A push of this meter, authenticated and encrypted.
    pub fn push(&self, plain: &[u8]) -> Vec<u8> {
        let protection = Protection {
            envelope: Envelope::GeneralGlo(Some(self.title())),
            security_control: SecurityControl::authenticated_encryption(Suite::Suite0),
            originator: self.title(),
            keys: Keys { encryption: &self.guek, authentication: &self.gak },
            gc_aad: GeneralCipheringAad::Spec,
        };
        let counter = FreshCounter::promise_never_used_under_this_key_and_title(1);
        let mut out = Vec::new();
        // Fails only for keys and plaintexts of other lengths.
        let protected = dlms::protect(&protection, counter, plain, &mut out);
        debug_assert!(protected.is_ok());
        out
    }
}

/// So many meters with random keys, and the file with these keys in clear.
pub fn made_up(count: u64, file: &Path) -> io::Result<Vec<MadeUp>> {
    let mut random = File::open("/dev/urandom")?;
    let mut out = BufWriter::new(File::create(file)?);
    let mut meters = Vec::new();
    for number in 1..=count {
        let mut meter = MadeUp { number, guek: [0; 16], gak: [0; 16] };
        random.read_exact(&mut meter.guek)?;
        random.read_exact(&mut meter.gak)?;
        let (guek, gak) = (hex::encode(meter.guek), hex::encode(meter.gak));
        let title = hex::encode_upper(meter.title().as_bytes());
        writeln!(
            out,
            r#"{{"meter_id":"SEA-{number}","system_title":"{title}","keys":[{{"kind":"GUEK","value":"{guek}"}},{{"kind":"GAK","value":"{gak}"}}]}}"#
        )?;
        meters.push(meter);
    }
    out.flush()?;
    Ok(meters)
}

/// A signing key, and the setting that makes a site know it.
pub struct Signing {
    key: PathBuf,
    public_key: PathBuf,
}

impl Signing {
    /// Makes a P-256 key in `dir`.
    pub fn make(dir: &Path) -> io::Result<Self> {
        let pair = KeyPair::generate().map_err(io::Error::other)?;
        let signing = Self::open(dir);
        fs::write(&signing.key, pair.serialize_pem())?;
        fs::write(&signing.public_key, pair.public_key_pem())?;
        Ok(signing)
    }

    /// The key pair that [`Signing::make`] made in `dir`.
    pub fn open(dir: &Path) -> Self {
        Self { key: dir.join("signer.key"), public_key: dir.join("signer.pem") }
    }

    /// For [`crate::SiteOptions::settings`].
    pub fn setting(&self) -> Setting {
        let path = quoted(&self.public_key.to_string_lossy());
        let value = format!("[{{ name = {}, public_key = {path} }}]", quoted(SIGNER));
        Setting { section: "import", key: "signers", value }
    }

    /// Seals `file` to the site that the tool talks to, as an operator who believes the site. One who
    /// does not compares the fingerprint with the report of `init`.
    pub fn seal(&self, tool: &AmiTool, file: &Path, out: &Path) -> Result<(), ToolError> {
        self.seal_with(tool, file, out, &[])
    }

    /// The same, with further arguments.
    pub fn seal_with(
        &self,
        tool: &AmiTool,
        file: &Path,
        out: &Path,
        more: &[String],
    ) -> Result<(), ToolError> {
        let import_key = out.with_extension("import-key");
        let key = import_key.to_string_lossy();
        let told = tool.succeed(&["site", "import-key", "--json", "--out", &key])?;
        let told: serde_json::Value = serde_json::from_str(told.trim())
            .map_err(|source| ToolError::BadLine { line: told.clone(), source })?;
        let fingerprint = told["fingerprint"].as_str().unwrap_or_default();
        let (file, out, signer) =
            (file.to_string_lossy(), out.to_string_lossy(), self.key.to_string_lossy());
        let mut arguments = vec!["meter", "seal", &file, "--out", &out, "--import-key", &key];
        arguments.extend(["--import-key-fingerprint", fingerprint, "--signer", SIGNER]);
        arguments.extend(["--signing-key", &signer]);
        arguments.extend(more.iter().map(String::as_str));
        tool.succeed(&arguments).map(drop)
    }
}
