//! Kamstrup's KEM: XML with one encrypted text, or a zip that has one. The password's bytes, padded with zeros to 16,
//! are the key *and* the initial value of AES-128-CBC, and nothing is authenticated: anyone who knows the password can
//! make such a file, and anyone at all can change one. What can be checked is that the plaintext has the form of one.

use std::io::{Cursor, Read as _};

use roxmltree::{Document, Node};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    consignment::{Device, Origin},
    encryption::cbc,
    error::ShipmentError,
    generic::cipher_value,
    supplier::Layout,
    value::Value,
    xml::{self, named, one, text},
};

const CBC: &str = "http://www.w3.org/2001/04/xmlenc#aes128-cbc";
const ENCRYPTED: &str = "http://www.w3.org/2001/04/xmlenc#";
const KEY_LEN: usize = 16;

/// Said of each such file.
pub(super) const WARNING: &str = "nothing in a KEM file is authenticated: compare some of its meters and check values \
    with the supplier's papers before the keys are used";

const FORM: ShipmentError = ShipmentError::Form { what: "it is no KEM file" };

/// The XML of the file: itself, or the only `.kem` (`.kem2`) of a zip.
pub(super) fn unzipped(bytes: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, ShipmentError> {
    if !bytes.starts_with(b"PK") {
        return Ok(bytes);
    }
    let broken = |_| ShipmentError::Form { what: "its zip can't be read" };
    let mut zip = zip::ZipArchive::new(Cursor::new(&bytes[..])).map_err(broken)?;
    let is_kem = |name: &String| {
        let name = name.to_ascii_lowercase();
        name.ends_with(".kem") || name.ends_with(".kem2")
    };
    let names: Result<Vec<String>, _> = zip.file_names().map(|name| name.map(Into::into)).collect();
    let mut names = names.map_err(broken)?.into_iter().filter(is_kem);
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(ShipmentError::Form { what: "its zip has not exactly one .kem file" });
    };
    let entry = zip.by_name(&name).map_err(broken)?;
    let mut out = Zeroizing::new(Vec::new());
    // By what comes out, whatever the zip says of itself.
    let mut bounded = entry.take(xml::BYTES_MAX as u64 + 1);
    bounded
        .read_to_end(&mut out)
        .map_err(|_| ShipmentError::Form { what: "its zip is damaged" })?;
    if out.len() > xml::BYTES_MAX {
        return Err(ShipmentError::TooLarge { what: "bytes", limit: xml::BYTES_MAX });
    }
    Ok(out)
}

/// The text that was encrypted.
pub(super) fn decrypted(
    outer: &Document<'_>,
    password: &[u8],
) -> Result<Zeroizing<String>, ShipmentError> {
    if password.is_empty() || password.len() > KEY_LEN {
        let what = "password_file: a KEM's password has 1 to 16 bytes".to_owned();
        return Err(ShipmentError::Settings { what });
    }
    let mut key = Zeroizing::new([0; KEY_LEN]);
    for (to, from) in key.iter_mut().zip(password) {
        *to = *from;
    }
    let is_data = |node: &Node<'_, '_>| node.has_tag_name((ENCRYPTED, "EncryptedData"));
    let mut data = outer.descendants().filter(is_data);
    let data = match (data.next(), data.next()) {
        (Some(only), None) => only,
        _ => return Err(FORM),
    };
    let method = one(data, "EncryptionMethod")?.and_then(|it| it.attribute("Algorithm"));
    if method != Some(CBC) {
        return Err(ShipmentError::Algorithm {
            what: "the algorithm of the KEM file",
            instead: "KEM has AES-128-CBC; ask the supplier for what this file is",
        });
    }
    let mut plain =
        cbc(&key[..], &key, &cipher_value(data)?).map_err(|_| ShipmentError::DoesNotOpen)?;
    // Zeros, or PKCS #7: neither can be in the text.
    let end = plain.iter().rposition(|byte| *byte > KEY_LEN as u8).map_or(0, |at| at + 1);
    if plain.len() - end > KEY_LEN {
        return Err(ShipmentError::DoesNotOpen);
    }
    plain.truncate(end);
    String::from_utf8(std::mem::take(&mut *plain)).map(Zeroizing::new).map_err(|error| {
        error.into_bytes().zeroize();
        ShipmentError::DoesNotOpen
    })
}

/// The meters of the decrypted text, in either of its two forms. What is no such text was decrypted with another
/// password, or changed.
pub(super) fn devices(plain: &str, layout: &Layout) -> Result<Vec<Device>, ShipmentError> {
    // Whatever is wrong with it says that it did not open; and its parts are keys.
    let not_opened = |_| ShipmentError::DoesNotOpen;
    let text = plain.trim_start_matches('\u{feff}');
    let inner = xml::parse(text).map_err(not_opened)?;
    let root = inner.root_element();
    let (devices, id) = match root.tag_name().name() {
        "MetersInOrder" => ("Meter", "SerialNo"),
        "Devices" => ("Device", "SerialNumber"),
        _ => return Err(ShipmentError::DoesNotOpen),
    };
    let id = layout.meter_id.as_deref().unwrap_or(id);
    Ok(named(root, devices)
        .map(|node| {
            device(node, id, layout).unwrap_or(Device {
                meter_id: String::new(),
                system_title: None,
                keys: Vec::new(),
                fault: Some("an element of it stands twice, or has parts where a text is due"),
            })
        })
        .collect())
}

/// Keys are elements of their own (`DEK`), or entries with name and value.
fn device(node: Node<'_, '_>, id: &str, layout: &Layout) -> Result<Device, ShipmentError> {
    let field = |name: &str| one(node, name)?.map(text).transpose();
    let title = layout.system_title.as_deref().map(field).transpose()?.flatten();
    let mut keys = Vec::new();
    let value = |text: &str| Value::Digits(Zeroizing::new(text.to_owned()));
    for entry in named(node, "Keys").chain([node]).flat_map(|it| named(it, "Key")) {
        let name = one(entry, "Name")?.map(text).transpose()?.ok_or(FORM)?;
        let digits = one(entry, "Value")?.map(text).transpose()?.ok_or(FORM)?;
        keys.push((name.to_owned(), value(digits)));
    }
    for name in layout.keys.keys() {
        if let Some(digits) = field(name)?.filter(|digits| !digits.is_empty()) {
            keys.push((name.clone(), value(digits)));
        }
    }
    Ok(Device {
        meter_id: field(id)?.unwrap_or_default().to_owned(),
        system_title: title.map(str::to_owned),
        keys,
        fault: None,
    })
}

/// Its origin: nobody's that could be told.
pub(super) fn origin() -> Origin {
    Origin { warnings: vec![WARNING.to_owned()], ..Origin::default() }
}
