//! Made-up meters, their keys, and what they send.

use dlms::{
    Envelope, FreshCounter, GeneralCipheringAad, Keys, Protection, SecurityControl, Suite,
    SystemTitle,
};
use kms_core::{ClearKey, KeyKind, MeterId, SecuritySetup, block::spread};
use kms_server::lifecycle::{KeyValue, NewKey, NewMeter};

use crate::Error;

/// Bytes of a telegram's plaintext.
pub const PLAINTEXT_LEN: usize = 150;

// Places in a telegram: general-glo-ciphering with its title.
/// Where the title is.
pub const TITLE_AT: usize = 2;
/// Where SC is.
pub const CONTROL_AT: usize = 12;
/// Where the invocation counter is.
pub const COUNTER_AT: usize = 13;
/// Where the ciphertext is.
pub const CIPHERTEXT_AT: usize = 17;
/// Bytes of the tag, at the end.
pub const TAG_LEN: usize = 12;
/// Bytes of a telegram.
pub const APDU_LEN: usize = CIPHERTEXT_AT + PLAINTEXT_LEN + TAG_LEN;

/// The title of the n-th meter.
pub fn title(n: u32) -> SystemTitle {
    SystemTitle::new((0x414D_4900_0000_0000 | u64::from(n)).to_be_bytes())
}

/// GUEK and GAK of the n-th meter.
pub fn keys(n: u32) -> ([u8; 16], [u8; 16]) {
    let half = |salt: u64| spread(u64::from(n) << 8 | salt).to_be_bytes();
    let key = |first, second| {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&half(first));
        key[8..].copy_from_slice(&half(second));
        key
    };
    (key(1, 2), key(3, 4))
}

/// The n-th meter as it is imported.
pub fn new_meter(n: u32) -> Result<NewMeter, Error> {
    let (guek, gak) = keys(n);
    let key = |kind, bytes: [u8; 16]| NewKey {
        kind,
        setup: SecuritySetup(0),
        protection: None,
        value: KeyValue::from(ClearKey::new(bytes.to_vec())),
    };
    Ok(NewMeter {
        meter_id: MeterId::new(&format!("meter-{n}"))?,
        system_title: title(n),
        logical_device_name: String::new(),
        keys: vec![key(KeyKind::Guek, guek), key(KeyKind::Gak, gak)],
        policy: None,
    })
}

/// Telegrams of many meters, one after the other, all of [`APDU_LEN`] bytes.
pub struct Telegrams {
    bytes: Vec<u8>,
    /// The meter of each one.
    pub meters: Vec<u32>,
}

impl Telegrams {
    /// One telegram of each of `count` meters of a fleet of `fleet`, in random order.
    pub fn of_random_meters(fleet: u32, count: usize) -> Result<Self, Error> {
        Self::under(|n| keys(n).0, fleet, count)
    }

    /// The same, under these encryption keys.
    pub fn under(
        encryption: impl Fn(u32) -> [u8; 16],
        fleet: u32,
        count: usize,
    ) -> Result<Self, Error> {
        let mut meters: Vec<u32> = (0..fleet).collect();
        for index in (1..meters.len()).rev() {
            meters.swap(index, (spread(index as u64) % (index as u64 + 1)) as usize);
        }
        let meters: Vec<u32> = meters.into_iter().cycle().take(count).collect();
        let mut bytes = Vec::with_capacity(count * APDU_LEN);
        for (counter, meter) in (1..).zip(&meters) {
            protect(*meter, encryption(*meter), counter, &mut bytes)?;
        }
        Ok(Self { bytes, meters })
    }

    /// The number of telegrams.
    pub fn len(&self) -> usize {
        self.meters.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.meters.is_empty()
    }

    /// Each with its meter.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.meters.iter().copied().zip(self.bytes.chunks_exact(APDU_LEN))
    }
}

/// Appends a telegram of meter `n`.
fn protect(n: u32, encryption: [u8; 16], counter: u32, out: &mut Vec<u8>) -> Result<(), Error> {
    let (_, authentication) = keys(n);
    let protection = Protection {
        envelope: Envelope::GeneralGlo(Some(title(n))),
        security_control: SecurityControl::authenticated_encryption(Suite::Suite0),
        originator: title(n),
        keys: Keys { encryption: &encryption, authentication: &authentication },
        gc_aad: GeneralCipheringAad::Spec,
    };
    let mut plaintext = [0; PLAINTEXT_LEN];
    for (byte, index) in plaintext.iter_mut().zip(0u64..) {
        *byte = spread(u64::from(counter) ^ index) as u8;
    }
    let counter = FreshCounter::promise_never_used_under_this_key_and_title(counter);
    dlms::protect(&protection, counter, &plaintext, out)
        .map_err(|error| format!("protecting a telegram: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_telegram_has_its_parts_where_the_bare_loop_looks_for_them() {
        let telegrams = Telegrams::of_random_meters(3, 1).unwrap();
        let (meter, apdu) = telegrams.iter().next().unwrap();
        assert_eq!(apdu.len(), APDU_LEN);
        assert_eq!(apdu[TITLE_AT..TITLE_AT + 8], title(meter).as_bytes()[..]);
        assert_eq!(apdu[CONTROL_AT], 0x30);
        assert_eq!(apdu[COUNTER_AT..CIPHERTEXT_AT], 1u32.to_be_bytes());
    }
}
