//! What came out of a supplier's file: its meters, one by one, and what of them was left out.

use super::{
    supplier::{KeyUse, Layout},
    value::{Value, WrapKey},
};
use crate::meter::{KeyKind, NewKey, NewMeter, Protection};
use crate::names::{MeterId, parse_system_title};
use crate::records::{BadRecord, MeterRecord, Place};

/// Where a file comes from, as far as it shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// SHA-256 over the public key that signed it; `None`: nobody did.
    pub signed_by: Option<String>,
    /// Its maker, as it says itself.
    pub manufacturer: Option<String>,
    /// Its number, as it says itself.
    pub batch: Option<String>,
    /// What an operator should know before he believes it.
    pub warnings: Vec<String>,
}

/// A key that was not taken, although the file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its name in the file.
    pub name: String,
    /// Its kind, if the settings say one.
    pub kind: Option<KeyKind>,
    /// Why.
    pub reason: &'static str,
}

/// A meter, and what was left out of it.
#[derive(Debug)]
pub struct Delivered {
    /// The meter, with the keys that were taken.
    pub record: MeterRecord,
    /// The keys that were not.
    pub left_out: Vec<LeftOut>,
}

/// The content of a supplier's file. Its keys stay as they came until each is asked for.
pub struct Consignment {
    pub(super) devices: Vec<Device>,
    pub(super) wrap_keys: Vec<WrapKey>,
    pub(super) layout: Layout,
    pub(super) origin: Origin,
}

/// A meter as the file has it.
pub(super) struct Device {
    pub(super) meter_id: String,
    pub(super) system_title: Option<String>,
    /// By their names in the file.
    pub(super) keys: Vec<(String, Value)>,
    /// The file says two things of it.
    pub(super) fault: Option<&'static str>,
}

impl Consignment {
    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Its meters, in the order of the file. As often as wanted.
    pub fn deliveries(&self) -> Deliveries<'_> {
        Deliveries { of: self, at: 0 }
    }

    /// The use of a key by its name, if it may be taken; the reason if not.
    pub(super) fn may_take(&self, name: &str, value: &Value) -> Result<KeyUse, LeftOut> {
        let left = |kind, reason| LeftOut { name: name.to_owned(), kind, reason };
        let Some(known) = self.layout.keys.get(name) else {
            return Err(left(None, "the settings name no such key"));
        };
        match known.kind {
            kind @ (KeyKind::HlsSecret | KeyKind::LlsPassword) => {
                Err(left(Some(kind), "a secret of free length can't be sealed"))
            }
            kind @ KeyKind::Kek if value.is_weak(&self.wrap_keys) => Err(left(
                Some(kind),
                "no token could have opened it: a KEK comes by RSA-OAEP with AES key wrap or AES-GCM, or in a \
                 file of its own",
            )),
            _ => Ok(*known),
        }
    }

    fn delivered(&self, number: u64, device: &Device) -> Result<Delivered, BadRecord> {
        let place = Place::Element(number);
        let refused = |code, reason: &str| BadRecord { place, code, reason: reason.to_owned() };
        if let Some(fault) = device.fault {
            return Err(refused("MALFORMED_LINE", fault));
        }
        let meter_id = MeterId::new(&device.meter_id)
            .map_err(|bad| refused("MALFORMED_LINE", &format!("its id: {bad}")))?;
        let of_file = device.system_title.as_deref().map(parse_system_title).transpose();
        let of_file = of_file.map_err(|bad| {
            refused("MALFORMED_LINE", &format!("meter {meter_id}: its title: {bad}"))
        })?;
        let listed = self.layout.titles.get(meter_id.as_str()).copied();
        let system_title = match (of_file, listed) {
            (Some(a), Some(b)) if a != b => {
                let reason = format!(
                    "meter {meter_id}: the file and the list of titles have two titles for it"
                );
                return Err(refused("TITLE_DIFFERS", &reason));
            }
            (of_file, listed) => of_file.or(listed).ok_or_else(|| {
                let reason = format!(
                    "meter {meter_id}: neither the file nor the list of titles has its title"
                );
                refused("NO_TITLE", &reason)
            })?,
        };
        let (mut keys, mut left_out) = (Vec::new(), Vec::new());
        for (name, value) in &device.keys {
            let KeyUse { kind, security_setup, protection } = match self.may_take(name, value) {
                Ok(known) => known,
                Err(left) => {
                    left_out.push(left);
                    continue;
                }
            };
            let value = value.open(&self.wrap_keys).map_err(|_| {
                let reason =
                    format!("meter {meter_id}: a value does not open to a key of 16 or 32 bytes");
                refused("VALUE_DOES_NOT_OPEN", &reason)
            })?;
            let protection = protection.filter(|_| kind != KeyKind::Kek).or(match kind {
                KeyKind::Kek => Some(Protection::Hsm),
                _ => None,
            });
            keys.push(NewKey { kind, value, security_setup, protection });
        }
        let policy = self.layout.policy.clone();
        let meter =
            NewMeter { meter_id, system_title, logical_device_name: String::new(), keys, policy };
        Ok(Delivered { record: MeterRecord { place, meter }, left_out })
    }
}

/// The meters of a file, one at a time. A bad one does not stop the others.
pub struct Deliveries<'a> {
    of: &'a Consignment,
    at: usize,
}

impl Iterator for Deliveries<'_> {
    type Item = Result<Delivered, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        let device = self.of.devices.get(self.at)?;
        self.at += 1;
        Some(self.of.delivered(self.at as u64, device))
    }
}

impl std::fmt::Debug for Consignment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consignment").field("origin", &self.origin).finish_non_exhaustive()
    }
}
