//! Opening a supplier's file: in this order, and no step before the one above it.

use std::path::Path;

use zeroize::Zeroizing;

use super::{
    consignment::Consignment, error::ShipmentError, generic, kem, signature, supplier::Supplier,
    value::Value, xml,
};

/// The form of a supplier's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShipmentFormat {
    /// The signed XML shipment.
    Shipment,
    /// Kamstrup's KEM, in a zip or by itself.
    Kem,
}

impl ShipmentFormat {
    /// By the file's extension: `.xml`; `.kem`, `.kem2` or `.zip`.
    pub fn of_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "xml" => Some(Self::Shipment),
            "kem" | "kem2" | "zip" => Some(Self::Kem),
            _ => None,
        }
    }

    /// Its word in receipts.
    pub fn word(self) -> &'static str {
        match self {
            Self::Shipment => "shipment",
            Self::Kem => "kem",
        }
    }
}

/// Opens a supplier's file.
pub fn open(
    bytes: Zeroizing<Vec<u8>>,
    format: ShipmentFormat,
    supplier: Supplier,
) -> Result<Consignment, ShipmentError> {
    if bytes.len() > xml::BYTES_MAX {
        return Err(ShipmentError::TooLarge { what: "bytes", limit: xml::BYTES_MAX });
    }
    let consignment = match format {
        ShipmentFormat::Shipment => shipment(text(&bytes)?, supplier)?,
        ShipmentFormat::Kem => kem_file(text(&kem::unzipped(bytes)?)?, supplier)?,
    };
    if consignment.devices.is_empty() {
        return Err(ShipmentError::Form { what: "it has no meter" });
    }
    check_values(&consignment)?;
    Ok(consignment)
}

fn text(bytes: &[u8]) -> Result<&str, ShipmentError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| ShipmentError::Form { what: "it is not in UTF-8" })?;
    Ok(text.trim_start_matches('\u{feff}'))
}

fn shipment(text: &str, supplier: Supplier) -> Result<Consignment, ShipmentError> {
    let Supplier { trust_anchor, wrap_keys, layout, .. } = supplier;
    let missing = || ShipmentError::Settings {
        what: "trust_anchor is missing: the certificate or public key of whoever signs the files"
            .to_owned(),
    };
    let anchor = trust_anchor.ok_or_else(missing)?;
    let document = xml::parse(text)?;
    let (root, signer) = signature::verify(&document, &anchor)?;
    let origin = generic::origin(&root, signer)?;
    let wrapping = generic::wrapping(&root, &wrap_keys)?;
    let devices = generic::devices(&root, &wrapping.labels, &layout)?;
    Ok(Consignment { devices, wrap_keys: wrapping.keys, layout, origin })
}

fn kem_file(text: &str, supplier: Supplier) -> Result<Consignment, ShipmentError> {
    let Supplier { password, layout, .. } = supplier;
    let missing = || ShipmentError::Settings {
        what: "password_file is missing: the password of the KEM file".to_owned(),
    };
    let password = password.ok_or_else(missing)?;
    let plain = kem::decrypted(&xml::parse(text)?, &password)?;
    let devices = kem::devices(&plain, &layout)?;
    Ok(Consignment { devices, wrap_keys: Vec::new(), layout, origin: kem::origin() })
}

/// Whether the keys are the right ones at all, as far as the file shows it. Where values are authenticated, one that
/// does not open is a bad line, and none that opens is a wrong key. Under CBC nothing shows that a key is the right
/// one but that *all* values open: one in 256 does by chance.
pub(super) fn check_values(consignment: &Consignment) -> Result<(), ShipmentError> {
    let (mut opened, mut closed) = (0_u64, 0_u64);
    let values = consignment.devices.iter().flat_map(|device| &device.keys);
    for (name, value) in values {
        if consignment.may_take(name, value).is_err() {
            continue;
        }
        let opens = value.open(&consignment.wrap_keys).is_ok();
        let is_by_chance = matches!(
            value, Value::Wrapped { method, .. } if !method.is_authenticated()
        );
        if !opens && is_by_chance {
            return Err(ShipmentError::DoesNotOpen);
        }
        if opens { opened += 1 } else { closed += 1 }
    }
    if opened == 0 && closed > 0 { Err(ShipmentError::DoesNotOpen) } else { Ok(()) }
}
