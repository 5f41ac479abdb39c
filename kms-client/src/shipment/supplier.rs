//! What an operator knows of a supplier: whose signature counts, which keys open, what the names in the files mean.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dlms::SystemTitle;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{anchor::TrustAnchor, encryption::WrapKeys, error::ShipmentError};
use crate::meter::{KeyKind, MeterPolicy, Protection};
use crate::names::parse_system_title;

/// The settings of one supplier.
pub struct Supplier {
    pub(super) trust_anchor: Option<TrustAnchor>,
    pub(super) wrap_keys: WrapKeys,
    pub(super) password: Option<Zeroizing<Vec<u8>>>,
    pub(super) layout: Layout,
}

/// What the names in a supplier's files mean.
#[derive(Default)]
pub(super) struct Layout {
    /// The element (or `Attribute` by its name) that has the meter's id.
    pub(super) meter_id: Option<String>,
    /// The one that has its system title.
    pub(super) system_title: Option<String>,
    /// Titles that stand in no file, by meter id.
    pub(super) titles: BTreeMap<String, SystemTitle>,
    /// Key by its name in the files.
    pub(super) keys: BTreeMap<String, KeyUse>,
    /// For all meters of the file.
    pub(super) policy: Option<MeterPolicy>,
}

/// What becomes of a key.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyUse {
    pub(super) kind: KeyKind,
    #[serde(default)]
    pub(super) security_setup: u8,
    #[serde(default)]
    pub(super) protection: Option<Protection>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    trust_anchor: Option<PathBuf>,
    unwrap_key: Option<PathBuf>,
    rsa_1_5_key: Option<PathBuf>,
    password_file: Option<PathBuf>,
    meter_id: Option<String>,
    system_title: Option<String>,
    titles: Option<PathBuf>,
    #[serde(default)]
    keys: BTreeMap<String, KeyUse>,
    policy: Option<MeterPolicy>,
}

fn bad(what: impl Into<String>) -> ShipmentError {
    ShipmentError::Settings { what: what.into() }
}

impl Supplier {
    /// Reads the settings and the files that they name; a relative path is one beside the settings.
    pub fn load(path: &Path) -> Result<Self, ShipmentError> {
        let text = read(path)?;
        let file: File = toml::from_str(&text).map_err(|error| bad(error.message()))?;
        let beside = |named: &PathBuf| path.parent().unwrap_or(Path::new("")).join(named);
        let text = |named: &Option<PathBuf>| named.as_ref().map(|it| read(&beside(it))).transpose();
        let (oaep, rsa_1_5) = (text(&file.unwrap_key)?, text(&file.rsa_1_5_key)?);
        let wrap_keys = WrapKeys::from_pem(
            oaep.as_ref().map(|pem| pem.as_str()),
            rsa_1_5.as_ref().map(|pem| pem.as_str()),
        )?;
        let anchor = text(&file.trust_anchor)?;
        let titles = text(&file.titles)?.map_or(Ok(BTreeMap::new()), |text| titles(&text))?;
        let password = text(&file.password_file)?.map(|text| {
            let line = text.strip_suffix('\n').unwrap_or(&text);
            Zeroizing::new(line.strip_suffix('\r').unwrap_or(line).as_bytes().to_vec())
        });
        let File { meter_id, system_title, keys, policy, .. } = file;
        if keys.is_empty() {
            return Err(bad(
                "[keys.NAME] says for each name in the files what key it is, and none does",
            ));
        }
        Ok(Self {
            trust_anchor: anchor.map(|pem| TrustAnchor::from_pem(&pem)).transpose()?,
            wrap_keys,
            password,
            layout: Layout { meter_id, system_title, titles, keys, policy },
        })
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, ShipmentError> {
    let text = fs::read_to_string(path);
    text.map(Zeroizing::new).map_err(|error| bad(format!("reading {}: {error}", path.display())))
}

/// Lines of a meter id and a title; a first line of names is passed over.
fn titles(text: &str) -> Result<BTreeMap<String, SystemTitle>, ShipmentError> {
    let mut titles = BTreeMap::new();
    for (nth, line) in text.lines().enumerate() {
        let wrong = |what: &str| bad(format!("titles: line {} {what}", nth + 1));
        let Some((id, title)) = line.split_once([',', ';', '\t']) else {
            if line.trim().is_empty() {
                continue;
            }
            return Err(wrong("is not: meter id, system title"));
        };
        match parse_system_title(title.trim()) {
            Ok(title) => {
                let known = titles.insert(id.trim().to_owned(), title);
                if known.is_some_and(|known| known != title) {
                    return Err(wrong("has a second title for its meter"));
                }
            }
            Err(_) if nth == 0 => {}
            Err(error) => return Err(bad(format!("titles: line {}: {error}", nth + 1))),
        }
    }
    Ok(titles)
}
