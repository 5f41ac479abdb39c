//! Records: the unit of change within a block, and their one canonical encoding.
//!
//! The encoding is injective: every field has a fixed length or its length before it, lists have
//! their count, a type label and a schema number come first, and the decoder accepts nothing that the
//! encoder would not write. A record's MAC is over these stored bytes.

use dlms::SystemTitle;

use super::{
    BlockNo, DomainId, Fingerprint, KeyId, KeyKind, KeyRecord, KeyState, MeterId, MeterPolicy,
    MeterRecord, MinimumProtection, Position, Protection, RecordMac, SecuritySetup,
};

/// A record's name within its domain: what it is about, then its title. Orders the digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey(pub [u8; RecordKey::LEN]);

impl RecordKey {
    /// In bytes: a kind byte and a title.
    pub const LEN: usize = 9;
    /// The kind byte of meters.
    const METER: u8 = 1;

    /// The record of the meter with this title, alive or buried.
    pub fn meter(title: &SystemTitle) -> Self {
        let mut key = [Self::METER; Self::LEN];
        key[1..].copy_from_slice(title.as_bytes());
        Self(key)
    }

    /// The title within.
    pub fn system_title(&self) -> SystemTitle {
        let [_, title @ ..] = self.0;
        SystemTitle::new(title)
    }
}

impl std::fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecordKey({})", hex::encode(self.0))
    }
}

/// A record as the store keeps it: `body` is opaque there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its name.
    pub key: RecordKey,
    /// Its last change.
    pub position: Position,
    /// The secret that `body` is wrapped under and `mac` made with.
    pub secret_version: u32,
    /// [`Record::encode`].
    pub body: Vec<u8>,
    /// Over [`mac_input`].
    pub mac: RecordMac,
}

/// What a body says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A meter and its keys.
    Meter(MeterRecord),
    /// A deleted meter.
    Tombstone(Tombstone),
}

/// What stays of a deleted meter: enough to know its keys again, and nothing to open with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The name it had.
    pub meter_id: MeterId,
    /// Its title.
    pub system_title: SystemTitle,
    /// Identities of all key values that it ever had.
    pub fingerprints: Vec<Fingerprint>,
    /// Milliseconds since 1970.
    pub deleted_ms: u64,
}

/// Bytes that are no record of this schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a record of schema {SCHEMA}")]
pub struct BadRecord;

/// Raised when the layout below changes.
const SCHEMA: u8 = 1;
const LABEL_METER: u8 = 1;
const LABEL_TOMBSTONE: u8 = 2;

/// What a record's MAC is computed over. Fixed lengths first, the body last: injective.
pub fn mac_input(domain: &DomainId, block: BlockNo, record: &StoredRecord, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(b"ami.kms/record/1");
    out.extend_from_slice(&domain.0);
    out.extend_from_slice(&block.0.to_be_bytes());
    out.extend_from_slice(&record.secret_version.to_be_bytes());
    out.extend_from_slice(&record.position.epoch.0.to_be_bytes());
    out.extend_from_slice(&record.position.sequence.0.to_be_bytes());
    out.extend_from_slice(&record.key.0);
    out.extend_from_slice(&record.body);
}

/// What a head's MAC is computed over.
pub fn head_mac_input(domain: &DomainId, head: &super::Head) -> Vec<u8> {
    let super::Head { block, secret_version, position, count, digest, mac: _ } = head;
    [
        b"ami.kms/head/1".as_slice(),
        &domain.0,
        &block.0.to_be_bytes(),
        &secret_version.to_be_bytes(),
        &position.epoch.0.to_be_bytes(),
        &position.sequence.0.to_be_bytes(),
        &count.to_be_bytes(),
        digest,
    ]
    .concat()
}

impl Record {
    /// The record's name.
    pub fn key(&self) -> RecordKey {
        match self {
            Self::Meter(meter) => RecordKey::meter(&meter.system_title),
            Self::Tombstone(tombstone) => RecordKey::meter(&tombstone.system_title),
        }
    }

    /// The name of a meter's record.
    pub fn key_of(meter: &MeterRecord) -> RecordKey {
        RecordKey::meter(&meter.system_title)
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.push(SCHEMA);
        match self {
            Self::Meter(meter) => {
                out.push(LABEL_METER);
                put_meter(&mut out, meter);
            }
            Self::Tombstone(tombstone) => {
                out.push(LABEL_TOMBSTONE);
                put_tombstone(&mut out, tombstone);
            }
        }
        out
    }

    /// The record in `body`; refuses anything that [`Record::encode`] would not write.
    pub fn decode(body: &[u8]) -> Result<Self, BadRecord> {
        let mut input = Reader(body);
        if input.u8()? != SCHEMA {
            return Err(BadRecord);
        }
        let record = match input.u8()? {
            LABEL_METER => Self::Meter(take_meter(&mut input)?),
            LABEL_TOMBSTONE => Self::Tombstone(take_tombstone(&mut input)?),
            _ => return Err(BadRecord),
        };
        if input.0.is_empty() { Ok(record) } else { Err(BadRecord) }
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // Nothing in a record is longer than 64 KiB; a longer field would not decode and is cut by its
    // own type before it comes here.
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn put_title(out: &mut Vec<u8>, title: Option<&SystemTitle>) {
    match title {
        None => out.push(0),
        Some(title) => {
            out.push(1);
            out.extend_from_slice(title.as_bytes());
        }
    }
}

fn put_meter(out: &mut Vec<u8>, meter: &MeterRecord) {
    let MeterRecord { meter_id, system_title, logical_device_name, policy, keys, created_ms } =
        meter;
    put_bytes(out, meter_id.as_str().as_bytes());
    out.extend_from_slice(system_title.as_bytes());
    put_bytes(out, logical_device_name.as_bytes());
    put_policy(out, policy);
    out.extend_from_slice(&created_ms.to_be_bytes());
    out.extend_from_slice(&(keys.len() as u16).to_be_bytes());
    for key in keys {
        put_key(out, key);
    }
}

fn put_policy(out: &mut Vec<u8>, policy: &MeterPolicy) {
    let MeterPolicy {
        minimum_protection,
        allow_encryption_only,
        allow_withheld_authentication_key,
        default_system_title,
        client_title,
        general_ciphering_omit_header,
    } = policy;
    out.push(*minimum_protection as u8);
    out.push(u8::from(*allow_encryption_only));
    out.push(u8::from(*allow_withheld_authentication_key));
    out.push(u8::from(*general_ciphering_omit_header));
    put_title(out, default_system_title.as_ref());
    put_title(out, client_title.as_ref());
}

fn put_key(out: &mut Vec<u8>, key: &KeyRecord) {
    let KeyRecord {
        id,
        setup,
        kind,
        version,
        state,
        protection,
        wrapped,
        value_len,
        created_ms,
        changed_ms,
        kcv,
        fingerprint,
    } = key;
    out.extend_from_slice(&id.0);
    out.extend_from_slice(&[setup.0, *kind as u8, *state as u8, *protection as u8, *value_len]);
    out.extend_from_slice(&version.to_be_bytes());
    out.extend_from_slice(&created_ms.to_be_bytes());
    out.extend_from_slice(&changed_ms.to_be_bytes());
    out.extend_from_slice(&fingerprint.0);
    match kcv {
        None => out.push(0),
        Some(kcv) => {
            out.push(1);
            out.extend_from_slice(kcv);
        }
    }
    put_bytes(out, wrapped);
}

fn put_tombstone(out: &mut Vec<u8>, tombstone: &Tombstone) {
    let Tombstone { meter_id, system_title, fingerprints, deleted_ms } = tombstone;
    put_bytes(out, meter_id.as_str().as_bytes());
    out.extend_from_slice(system_title.as_bytes());
    out.extend_from_slice(&deleted_ms.to_be_bytes());
    out.extend_from_slice(&(fingerprints.len() as u16).to_be_bytes());
    for fingerprint in fingerprints {
        out.extend_from_slice(&fingerprint.0);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadRecord> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(BadRecord)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, BadRecord> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, BadRecord> {
        self.array().map(u16::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, BadRecord> {
        self.array().map(u64::from_be_bytes)
    }

    fn flag(&mut self) -> Result<bool, BadRecord> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(BadRecord),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], BadRecord> {
        let len = usize::from(self.u16()?);
        let (head, rest) = self.0.split_at_checked(len).ok_or(BadRecord)?;
        self.0 = rest;
        Ok(head)
    }

    fn text(&mut self) -> Result<&'a str, BadRecord> {
        std::str::from_utf8(self.bytes()?).map_err(|_| BadRecord)
    }

    fn title(&mut self) -> Result<SystemTitle, BadRecord> {
        self.array().map(SystemTitle::new)
    }

    fn optional_title(&mut self) -> Result<Option<SystemTitle>, BadRecord> {
        self.flag()?.then(|| self.title()).transpose()
    }

    fn meter_id(&mut self) -> Result<MeterId, BadRecord> {
        MeterId::new(self.text()?).map_err(|_| BadRecord)
    }
}

fn take_meter(input: &mut Reader<'_>) -> Result<MeterRecord, BadRecord> {
    let meter_id = input.meter_id()?;
    let system_title = input.title()?;
    let logical_device_name = input.text()?.to_owned();
    let policy = take_policy(input)?;
    let created_ms = input.u64()?;
    let count = input.u16()?;
    let keys = (0..count).map(|_| take_key(input)).collect::<Result<_, _>>()?;
    Ok(MeterRecord { meter_id, system_title, logical_device_name, policy, keys, created_ms })
}

fn take_policy(input: &mut Reader<'_>) -> Result<MeterPolicy, BadRecord> {
    let minimum_protection = match input.u8()? {
        1 => MinimumProtection::AuthenticatedEncrypted,
        2 => MinimumProtection::Authenticated,
        _ => return Err(BadRecord),
    };
    Ok(MeterPolicy {
        minimum_protection,
        allow_encryption_only: input.flag()?,
        allow_withheld_authentication_key: input.flag()?,
        general_ciphering_omit_header: input.flag()?,
        default_system_title: input.optional_title()?,
        client_title: input.optional_title()?,
    })
}

fn take_key(input: &mut Reader<'_>) -> Result<KeyRecord, BadRecord> {
    let id = KeyId(input.array()?);
    let [setup, kind, state, protection, value_len] = input.array()?;
    let version = input.u16()?;
    let created_ms = input.u64()?;
    let changed_ms = input.u64()?;
    let fingerprint = Fingerprint(input.array()?);
    let kcv = input.flag()?.then(|| input.array()).transpose()?;
    Ok(KeyRecord {
        id,
        setup: SecuritySetup(setup),
        kind: KeyKind::from_number(kind).ok_or(BadRecord)?,
        version,
        state: KeyState::from_number(state).ok_or(BadRecord)?,
        protection: match protection {
            1 => Protection::Hsm,
            2 => Protection::Memory,
            _ => return Err(BadRecord),
        },
        wrapped: input.bytes()?.to_vec(),
        value_len,
        created_ms,
        changed_ms,
        kcv,
        fingerprint,
    })
}

fn take_tombstone(input: &mut Reader<'_>) -> Result<Tombstone, BadRecord> {
    let meter_id = input.meter_id()?;
    let system_title = input.title()?;
    let deleted_ms = input.u64()?;
    let count = input.u16()?;
    let fingerprints =
        (0..count).map(|_| input.array().map(Fingerprint)).collect::<Result<_, _>>()?;
    Ok(Tombstone { meter_id, system_title, fingerprints, deleted_ms })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn title() -> impl Strategy<Value = SystemTitle> {
        any::<[u8; 8]>().prop_map(SystemTitle::new)
    }

    fn key() -> impl Strategy<Value = KeyRecord> {
        (
            any::<([u8; 16], u8, u16, u8, u64, u64, [u8; 16], Option<[u8; 5]>)>(),
            prop::sample::select(&KeyKind::ALL[..]),
            prop::sample::select(&KeyState::ALL[..]),
            prop::sample::select(&[Protection::Hsm, Protection::Memory][..]),
            prop::collection::vec(any::<u8>(), 0..80),
        )
            .prop_map(|(plain, kind, state, protection, wrapped)| KeyRecord {
                id: KeyId(plain.0),
                setup: SecuritySetup(plain.1),
                version: plain.2,
                value_len: plain.3,
                created_ms: plain.4,
                changed_ms: plain.5,
                fingerprint: Fingerprint(plain.6),
                kcv: plain.7,
                kind,
                state,
                protection,
                wrapped,
            })
    }

    fn meter() -> impl Strategy<Value = Record> {
        (
            "[!-~]{1,64}",
            title(),
            ".{0,20}",
            prop::option::of(title()),
            prop::option::of(title()),
            any::<(bool, bool, bool, bool, u64)>(),
            prop::collection::vec(key(), 0..5),
        )
            .prop_map(|(id, title, ldn, own, client, flags, keys)| {
                Record::Meter(MeterRecord {
                    meter_id: MeterId::new(&id).unwrap(),
                    system_title: title,
                    logical_device_name: ldn,
                    policy: MeterPolicy {
                        minimum_protection: if flags.0 {
                            MinimumProtection::Authenticated
                        } else {
                            MinimumProtection::AuthenticatedEncrypted
                        },
                        allow_encryption_only: flags.1,
                        allow_withheld_authentication_key: flags.2,
                        general_ciphering_omit_header: flags.3,
                        default_system_title: own,
                        client_title: client,
                    },
                    keys,
                    created_ms: flags.4,
                })
            })
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was(record in meter()) {
            prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
        }

        #[test]
        fn a_cut_or_longer_record_is_refused(record in meter(), cut in any::<prop::sample::Index>()) {
            let body = record.encode();
            prop_assert_eq!(Record::decode(&body[..cut.index(body.len())]), Err(BadRecord));
            prop_assert_eq!(Record::decode(&[&body[..], &[0]].concat()), Err(BadRecord));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(record in meter(), at in any::<prop::sample::Index>(), bit in 0u32..8) {
            let mut body = record.encode();
            let at = at.index(body.len());
            body[at] ^= 1 << bit;
            if let Ok(other) = Record::decode(&body) {
                prop_assert_eq!(other.encode(), body);
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::decode(&bytes);
        }
    }
}
