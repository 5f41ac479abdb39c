//! The XML shipment (`GenericShipment`, version 1.5): a header with wrap keys, a body with devices, a signature.
//!
//! Elements are known by their names in whatever namespace, as its readers do. Where the schema leaves the place of a
//! label open, it is taken as an attribute or as an element; two that differ are refused.

use std::collections::BTreeMap;

use roxmltree::Node;

use super::{
    consignment::{Device, Origin},
    encryption::{KeyMethod, ValueMethod, WrapKeys},
    error::ShipmentError,
    signature::SignedRoot,
    supplier::Layout,
    value::{Value, WrapKey},
    xml::{base64, elements, named, one, text},
};

/// Wrap keys of a file.
const WRAP_KEYS_MAX: usize = 64;
/// Keys of one device: as many as a line of an import may bring.
const KEYS_MAX: usize = 64;

const FORM: ShipmentError = ShipmentError::Form { what: "it is no shipment of the version 1.5" };

/// The wrap keys of a file by their labels, opened.
pub(super) struct Wrapping {
    pub(super) labels: BTreeMap<String, usize>,
    pub(super) keys: Vec<WrapKey>,
}

/// Maker and batch, as the header says them.
pub(super) fn origin(root: &SignedRoot<'_, '_>, signer: String) -> Result<Origin, ShipmentError> {
    let header = header(root)?;
    let said = |name| -> Result<Option<String>, ShipmentError> {
        let said = one(header, name)?.map(text).transpose()?;
        Ok(said.map(|it| it.chars().filter(|c| !c.is_control()).take(64).collect()))
    };
    Ok(Origin {
        signed_by: Some(signer),
        manufacturer: said("Manufacturer")?,
        batch: said("BatchID")?,
        warnings: Vec::new(),
    })
}

fn header<'a, 'i>(root: &SignedRoot<'a, 'i>) -> Result<Node<'a, 'i>, ShipmentError> {
    if root.name() != "Shipment" {
        return Err(FORM);
    }
    root.part("Header")?.ok_or(FORM)
}

/// Opens the wrap keys of the header.
pub(super) fn wrapping(
    root: &SignedRoot<'_, '_>,
    private: &WrapKeys,
) -> Result<Wrapping, ShipmentError> {
    let mut wrapping = Wrapping { labels: BTreeMap::new(), keys: Vec::new() };
    for node in named(header(root)?, "WrapKey") {
        if wrapping.keys.len() == WRAP_KEYS_MAX {
            return Err(ShipmentError::TooLarge { what: "wrap keys", limit: WRAP_KEYS_MAX });
        }
        let label = label(node, &["Label", "label"])?.unwrap_or_default().to_owned();
        let Some(key) = one(node, "SymmetricKey")? else { continue };
        // The element is an EncryptedKey by its type, or has one.
        let key = one(key, "EncryptedKey")?.unwrap_or(key);
        let (method, wrapped) = encrypted_key(key)?;
        let key = private.unwrap(method, &wrapped)?;
        let is_weak = method == KeyMethod::Rsa15;
        if wrapping.labels.insert(label, wrapping.keys.len()).is_some() {
            return Err(ShipmentError::Form { what: "two wrap keys have one label" });
        }
        wrapping.keys.push(WrapKey { key, is_weak });
    }
    Ok(wrapping)
}

fn encrypted_key(key: Node<'_, '_>) -> Result<(KeyMethod, Vec<u8>), ShipmentError> {
    let said = one(key, "EncryptionMethod")?;
    let part = |name| -> Result<Option<&str>, ShipmentError> {
        let part = said.map(|it| one(it, name)).transpose()?.flatten();
        part.map(|it| it.attribute("Algorithm").ok_or(FORM)).transpose()
    };
    if said.is_some_and(|it| named(it, "OAEPparams").next().is_some()) {
        return Err(ShipmentError::Algorithm {
            what: "a label of RSA-OAEP (OAEPparams)",
            instead: "ask for a file without",
        });
    }
    let algorithm = said.and_then(|it| it.attribute("Algorithm"));
    let method = KeyMethod::of(algorithm, part("DigestMethod")?, part("MGF")?)?;
    Ok((method, cipher_value(key)?))
}

/// The bytes of the only cipher value, in its `CipherData` or by itself.
pub(super) fn cipher_value(node: Node<'_, '_>) -> Result<Vec<u8>, ShipmentError> {
    let within = one(node, "CipherData")?.unwrap_or(node);
    let value = one(within, "CipherValue")?.ok_or(FORM)?;
    Ok(base64(text(value)?)?.to_vec())
}

/// A label, as an attribute or an element, by any of its spellings.
fn label<'a>(node: Node<'a, '_>, names: &[&str]) -> Result<Option<&'a str>, ShipmentError> {
    let mut found = None;
    for name in names {
        let element = one(node, name)?.map(text).transpose()?;
        for said in [node.attribute(*name), element].into_iter().flatten() {
            if found.is_some_and(|known| known != said) {
                return Err(ShipmentError::Form { what: "an element has two labels" });
            }
            found = Some(said);
        }
    }
    Ok(found)
}

/// The devices of the body, as they stand there: a fault of one is its own.
pub(super) fn devices(
    root: &SignedRoot<'_, '_>,
    labels: &BTreeMap<String, usize>,
    layout: &Layout,
) -> Result<Vec<Device>, ShipmentError> {
    let body = root.part("Body")?.ok_or(FORM)?;
    let devices = named(body, "Device");
    let device = |node| match device(node, labels, layout) {
        Ok(device) => device,
        Err(fault) => Device {
            meter_id: String::new(),
            system_title: None,
            keys: Vec::new(),
            fault: Some(fault.0),
        },
    };
    Ok(devices.map(device).collect())
}

/// A fault of one device.
struct Fault(&'static str);

impl From<ShipmentError> for Fault {
    fn from(error: ShipmentError) -> Self {
        Self(match error {
            ShipmentError::Form { what } | ShipmentError::Algorithm { what, .. } => what,
            _ => "it can't be read",
        })
    }
}

fn device(
    node: Node<'_, '_>,
    labels: &BTreeMap<String, usize>,
    layout: &Layout,
) -> Result<Device, Fault> {
    let id = field(node, layout.meter_id.as_deref().unwrap_or("SerialNumber"))?;
    let title = match &layout.system_title {
        Some(name) => field(node, name)?,
        None => None,
    };
    let mut keys = Vec::new();
    for key in named(node, "Key") {
        if keys.len() == KEYS_MAX {
            return Err(Fault("it has more than 64 keys"));
        }
        let name = label(key, &["name", "Name"])?.ok_or(Fault("a key has no name"))?;
        let wrap_key = label(key, &["WrapKeyLabel", "wrapKeyLabel"])?.unwrap_or_default();
        let wrap_key =
            *labels.get(wrap_key).ok_or(Fault("a key names a wrap key that is not there"))?;
        let said = one(key, "EncryptionMethod")?.and_then(|it| it.attribute("Algorithm"));
        let method = ValueMethod::of(said)?;
        let encrypted = cipher_value(key)?;
        keys.push((name.to_owned(), Value::Wrapped { method, wrap_key, encrypted }));
    }
    Ok(Device {
        meter_id: id.unwrap_or_default().to_owned(),
        system_title: title.map(str::to_owned),
        keys,
        fault: None,
    })
}

/// The text of a device's element of this name, or of its `Attribute` that has it as its name.
fn field<'a>(device: Node<'a, '_>, name: &str) -> Result<Option<&'a str>, ShipmentError> {
    if let Some(element) = one(device, name)? {
        return text(element).map(Some);
    }
    let mut found = None;
    for attribute in elements(device).filter(|it| it.tag_name().name() == "Attribute") {
        if label(attribute, &["name", "Name"])? != Some(name) {
            continue;
        }
        let value = match one(attribute, "Value")? {
            Some(value) => text(value)?,
            None => text(attribute)?,
        };
        if found.replace(value).is_some() {
            return Err(ShipmentError::Form {
                what: "an attribute that may stand once stands twice",
            });
        }
    }
    Ok(found)
}
