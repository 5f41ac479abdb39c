//! Records: the unit of change within a block, and their one canonical encoding.
//!
//! The encoding is injective: every field has a fixed length or its length before it, lists have
//! their count, a type label and a schema number come first, and the decoder accepts nothing that the
//! encoder would not write. A record is written in the oldest schema that can hold it, so that a server of the
//! release before reads all that it could have written itself. A record's MAC is over these stored bytes.

use dlms::SystemTitle;

use super::{
    BlockNo, ChangeMark, ClientTitle, ClientTitles, DomainId, FilePlace, Fingerprint, FormerKey,
    FormerUse, KeyId, KeyLife, KeyRecord, MeterId, MeterPolicy, MeterRecord, Position, ProfileName,
    RecordMac, SecuritySetup,
    counters::{Line, LineName, Offset},
    fact::{Fact, NUMBER_MAX},
};

mod key;
mod life;
mod reader;

pub use key::RecordKey;
pub use reader::{BadRecord, RecordTooLong, SCHEMA};
use reader::{Reader, numbered, put_bytes, put_len};

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

/// The content of a record's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A meter and its keys.
    Meter(MeterRecord),
    /// A deleted meter.
    Tombstone(Tombstone),
    /// A counter line.
    Line(Line),
    /// A fact of the domain.
    Fact(Fact),
}

/// The remains of a deleted meter: enough to know its keys again, and nothing to open with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The name it had. `None`: its record was damaged when it was buried, and could not say. Then it
    /// also had keys that `keys` does not know.
    pub meter_id: Option<MeterId>,
    /// Its title.
    pub system_title: SystemTitle,
    /// All key values that it ever had; at most [`FormerKey::MAX`].
    pub keys: Vec<FormerKey>,
    /// Milliseconds since 1970.
    pub deleted_ms: u64,
    /// The last change of the meter.
    pub changed_by: ChangeMark,
    /// The time at which two people let it come back; milliseconds since 1970. `None`: they have not.
    pub readmitted_ms: Option<u64>,
}

/// Of a meter with a profile or client titles.
const THIRD_SCHEMA: u8 = 3;
/// Of whatever has neither profile nor client titles.
const SECOND_SCHEMA: u8 = 2;
/// Without former keys, marks of changes and readmissions; a tombstone's fingerprints without their use.
const FIRST_SCHEMA: u8 = 1;
const LABEL_METER: u8 = 1;
const LABEL_TOMBSTONE: u8 = 2;
const LABEL_LINE: u8 = 3;
const LABEL_FACT: u8 = 4;
/// The first two bytes of every body that this release reads: schema and label.
pub const BEGINNINGS: [[u8; 2]; 10] =
    [[1, 1], [1, 2], [2, 1], [2, 2], [2, 3], [2, 4], [3, 1], [3, 2], [3, 3], [4, 1]];

/// The input of a record's MAC. Fixed lengths first, the body last: injective.
pub fn mac_input(domain: &DomainId, block: BlockNo, record: &StoredRecord, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(b"ami.kms/record/1");
    out.extend_from_slice(&domain.0);
    out.extend_from_slice(&block.0.to_be_bytes());
    out.extend_from_slice(&record.secret_version.to_be_bytes());
    out.extend_from_slice(&record.position.epoch.0.to_be_bytes());
    out.extend_from_slice(&record.position.sequence.0.to_be_bytes());
    out.extend_from_slice(record.key.as_bytes());
    out.extend_from_slice(&record.body);
}

/// The input of a head's MAC.
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
            Self::Line(line) => RecordKey::line(&line.name),
            Self::Fact(fact) => RecordKey::fact(&fact.name()),
        }
    }

    /// The name of a meter's record.
    pub fn key_of(meter: &MeterRecord) -> RecordKey {
        RecordKey::meter(&meter.system_title)
    }

    /// The canonical bytes. What comes out is a record that [`Record::decode`] takes, or nothing does.
    pub fn encode(&self) -> Result<Vec<u8>, RecordTooLong> {
        let mut out = Vec::with_capacity(256);
        out.push(self.schema());
        match self {
            Self::Meter(meter) => {
                out.push(LABEL_METER);
                put_meter(&mut out, meter)?;
            }
            Self::Tombstone(tombstone) => {
                out.push(LABEL_TOMBSTONE);
                put_tombstone(&mut out, tombstone)?;
            }
            Self::Line(line) => {
                out.push(LABEL_LINE);
                put_line(&mut out, line);
            }
            Self::Fact(fact) => {
                out.push(LABEL_FACT);
                put_fact(&mut out, fact)?;
            }
        }
        Ok(out)
    }

    /// The oldest schema that can hold it, the first one apart: that is written no more.
    fn schema(&self) -> u8 {
        match self {
            Self::Meter(meter) if life::has_life(meter) => SCHEMA,
            Self::Meter(meter) if has_details(&meter.policy) => THIRD_SCHEMA,
            Self::Meter(_) | Self::Tombstone(_) | Self::Line(_) | Self::Fact(_) => SECOND_SCHEMA,
        }
    }

    /// The record in `body`; refuses anything that [`Record::encode`], or that of the first schema,
    /// would not write.
    pub fn decode(body: &[u8]) -> Result<Self, BadRecord> {
        let mut input = Reader(body);
        let schema = input.u8()?;
        if !matches!(schema, FIRST_SCHEMA | SECOND_SCHEMA | THIRD_SCHEMA | SCHEMA) {
            return Err(BadRecord);
        }
        let record = match input.u8()? {
            LABEL_METER => Self::Meter(take_meter(&mut input, schema)?),
            LABEL_TOMBSTONE if schema < THIRD_SCHEMA => {
                Self::Tombstone(take_tombstone(&mut input, schema)?)
            }
            LABEL_LINE if schema == SECOND_SCHEMA => Self::Line(take_line(&mut input)?),
            LABEL_FACT if schema == SECOND_SCHEMA => {
                let rest = std::mem::take(&mut input.0);
                Self::Fact(Fact::take(rest).map_err(|_| BadRecord)?)
            }
            _ => return Err(BadRecord),
        };
        if input.0.is_empty() { Ok(record) } else { Err(BadRecord) }
    }
}

fn put_title(out: &mut Vec<u8>, title: Option<&SystemTitle>) {
    out.push(u8::from(title.is_some()));
    out.extend(title.into_iter().flat_map(SystemTitle::as_bytes));
}

fn put_meter(out: &mut Vec<u8>, meter: &MeterRecord) -> Result<(), RecordTooLong> {
    let MeterRecord {
        meter_id,
        system_title,
        logical_device_name,
        policy,
        keys,
        created_ms,
        former,
        changed_by,
        legal_hold_ms: _,
    } = meter;
    put_bytes(out, "meter id's bytes", meter_id.as_str().as_bytes())?;
    out.extend_from_slice(system_title.as_bytes());
    put_bytes(out, "logical device name's bytes", logical_device_name.as_bytes())?;
    put_policy(out, policy);
    out.extend_from_slice(&created_ms.to_be_bytes());
    put_len(out, "key versions", keys.len())?;
    keys.iter().try_for_each(|key| put_key(out, key))?;
    put_former(out, former)?;
    put_mark(out, changed_by);
    let has_life = life::has_life(meter);
    if has_life || has_details(policy) {
        put_details(out, policy)?;
    }
    if has_life {
        life::put(out, meter)?;
    }
    Ok(())
}

/// Whether a policy says what came with the third schema.
fn has_details(policy: &MeterPolicy) -> bool {
    policy.profile.is_some() || !policy.client_titles.is_empty()
}

fn put_details(out: &mut Vec<u8>, policy: &MeterPolicy) -> Result<(), RecordTooLong> {
    // No name is empty.
    let profile = policy.profile.as_ref().map_or("", ProfileName::as_str);
    put_bytes(out, "profile's bytes", profile.as_bytes())?;
    let titles = policy.client_titles.as_slice();
    put_len(out, "client titles", titles.len())?;
    for ClientTitle { setup, client, title } in titles {
        out.push(setup.0);
        out.extend_from_slice(&client.to_be_bytes());
        out.extend_from_slice(title.as_bytes());
    }
    Ok(())
}

fn put_former(out: &mut Vec<u8>, keys: &[FormerKey]) -> Result<(), RecordTooLong> {
    put_len(out, "former keys", keys.len())?;
    for FormerKey { fingerprint, was } in keys {
        out.extend_from_slice(&fingerprint.0);
        match was {
            None => out.push(0),
            Some(FormerUse { setup, kind, state }) => {
                out.extend_from_slice(&[1, setup.0, *kind as u8, *state as u8]);
            }
        }
    }
    Ok(())
}

fn put_mark(out: &mut Vec<u8>, mark: &ChangeMark) {
    let ChangeMark { at_ms, file } = mark;
    out.extend_from_slice(&at_ms.to_be_bytes());
    match file {
        None => out.push(0),
        Some(FilePlace { file, line }) => {
            out.push(1);
            out.extend_from_slice(file);
            out.extend_from_slice(&line.to_be_bytes());
        }
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
        // Behind all the rest.
        profile: _,
        client_titles: _,
        allow_compromised: _,
    } = policy;
    out.push(*minimum_protection as u8);
    out.push(u8::from(*allow_encryption_only));
    out.push(u8::from(*allow_withheld_authentication_key));
    out.push(u8::from(*general_ciphering_omit_header));
    put_title(out, default_system_title.as_ref());
    put_title(out, client_title.as_ref());
}

fn put_key(out: &mut Vec<u8>, key: &KeyRecord) -> Result<(), RecordTooLong> {
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
        // Behind all the rest of the meter.
        life: _,
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
    put_bytes(out, "wrapped key's bytes", wrapped)
}

fn put_tombstone(out: &mut Vec<u8>, tombstone: &Tombstone) -> Result<(), RecordTooLong> {
    let Tombstone { meter_id, system_title, keys, deleted_ms, changed_by, readmitted_ms } =
        tombstone;
    // No meter id is empty.
    let id = meter_id.as_ref().map_or("", MeterId::as_str);
    put_bytes(out, "meter id's bytes", id.as_bytes())?;
    out.extend_from_slice(system_title.as_bytes());
    out.extend_from_slice(&deleted_ms.to_be_bytes());
    put_former(out, keys)?;
    put_mark(out, changed_by);
    match readmitted_ms {
        None => out.push(0),
        Some(at_ms) => {
            out.push(1);
            out.extend_from_slice(&at_ms.to_be_bytes());
        }
    }
    Ok(())
}

fn put_line(out: &mut Vec<u8>, line: &Line) {
    let Line { name: LineName { fingerprint, originator }, offset } = line;
    out.extend_from_slice(&fingerprint.0);
    out.extend_from_slice(originator.as_bytes());
    match offset {
        None => out.push(0),
        Some(offset) => {
            out.push(1);
            out.extend_from_slice(&offset.get().to_be_bytes());
        }
    }
}

fn put_fact(out: &mut Vec<u8>, fact: &Fact) -> Result<(), RecordTooLong> {
    if let Fact::List(list) = fact {
        let len = list.number.as_ref().map_or(0, Vec::len);
        if len > NUMBER_MAX {
            let what = "revocation list number's bytes";
            return Err(RecordTooLong { what, len, most: NUMBER_MAX });
        }
    }
    let fits = match fact {
        Fact::Secrets(secrets) => secrets.fits(),
        Fact::Group(group) => group.fits(),
        Fact::Campaign(campaign) => campaign.fits(),
        Fact::CampaignPart(part) => part.fits(),
        Fact::File(_) | Fact::List(_) | Fact::Wish(_) | Fact::Membership(_) => Ok(()),
    };
    fits.map_err(|(what, len, most)| RecordTooLong { what, len, most })?;
    fact.put(out);
    Ok(())
}

fn take_meter(input: &mut Reader<'_>, schema: u8) -> Result<MeterRecord, BadRecord> {
    let meter_id = input.meter_id()?;
    let system_title = input.title()?;
    let logical_device_name = input.text()?.to_owned();
    let mut policy = take_policy(input)?;
    let created_ms = input.u64()?;
    let count = input.u16()?;
    let keys = (0..count).map(|_| take_key(input)).collect::<Result<_, _>>()?;
    let (former, changed_by) = match schema {
        FIRST_SCHEMA => (Vec::new(), ChangeMark::default()),
        _ => (take_former(input)?, take_mark(input)?),
    };
    if schema >= THIRD_SCHEMA {
        take_details(input, &mut policy)?;
    }
    let legal_hold_ms = None;
    let mut meter = MeterRecord {
        meter_id,
        system_title,
        logical_device_name,
        policy,
        keys,
        created_ms,
        former,
        changed_by,
        legal_hold_ms,
    };
    // With nothing to say it would not have been written so.
    let as_written = match schema {
        SCHEMA => {
            life::take(input, &mut meter)?;
            life::has_life(&meter)
        }
        THIRD_SCHEMA => has_details(&meter.policy),
        _ => true,
    };
    if as_written { Ok(meter) } else { Err(BadRecord) }
}

fn take_former(input: &mut Reader<'_>) -> Result<Vec<FormerKey>, BadRecord> {
    let count = input.u16()?;
    (0..count)
        .map(|_| {
            let fingerprint = Fingerprint(input.array()?);
            let was = input.flag()?.then(|| take_use(input)).transpose()?;
            Ok(FormerKey { fingerprint, was })
        })
        .collect()
}

fn take_use(input: &mut Reader<'_>) -> Result<FormerUse, BadRecord> {
    let [setup, kind, state] = input.array()?;
    Ok(FormerUse { setup: SecuritySetup(setup), kind: numbered(kind)?, state: numbered(state)? })
}

fn take_mark(input: &mut Reader<'_>) -> Result<ChangeMark, BadRecord> {
    let at_ms = input.u64()?;
    let place = |input: &mut Reader<'_>| Ok(FilePlace { file: input.array()?, line: input.u64()? });
    let file = input.flag()?.then(|| place(input)).transpose()?;
    Ok(ChangeMark { at_ms, file })
}

fn take_policy(input: &mut Reader<'_>) -> Result<MeterPolicy, BadRecord> {
    Ok(MeterPolicy {
        minimum_protection: numbered(input.u8()?)?,
        allow_encryption_only: input.flag()?,
        allow_withheld_authentication_key: input.flag()?,
        general_ciphering_omit_header: input.flag()?,
        default_system_title: input.optional_title()?,
        client_title: input.optional_title()?,
        profile: None,
        client_titles: ClientTitles::NONE,
        allow_compromised: false,
    })
}

fn take_details(input: &mut Reader<'_>, policy: &mut MeterPolicy) -> Result<(), BadRecord> {
    policy.profile = match input.text()? {
        "" => None,
        name => Some(ProfileName::new(name).map_err(|_| BadRecord)?),
    };
    let count = input.u16()?;
    let titles = (0..count).map(|_| {
        let setup = SecuritySetup(input.u8()?);
        Ok(ClientTitle { setup, client: input.u16()?, title: input.title()? })
    });
    let titles: Vec<ClientTitle> = titles.collect::<Result<_, BadRecord>>()?;
    policy.client_titles = ClientTitles::new(titles.clone()).map_err(|_| BadRecord)?;
    // In another order it would not be written.
    if policy.client_titles.as_slice() == titles { Ok(()) } else { Err(BadRecord) }
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
        kind: numbered(kind)?,
        version,
        state: numbered(state)?,
        protection: numbered(protection)?,
        wrapped: input.bytes()?.to_vec(),
        value_len,
        created_ms,
        changed_ms,
        kcv,
        fingerprint,
        life: KeyLife::default(),
    })
}

fn take_tombstone(input: &mut Reader<'_>, schema: u8) -> Result<Tombstone, BadRecord> {
    let meter_id = match input.text()? {
        "" if schema != FIRST_SCHEMA => None,
        id => Some(MeterId::new(id).map_err(|_| BadRecord)?),
    };
    let system_title = input.title()?;
    let deleted_ms = input.u64()?;
    if schema == FIRST_SCHEMA {
        let count = input.u16()?;
        let former = |fingerprint| FormerKey { fingerprint: Fingerprint(fingerprint), was: None };
        let keys = (0..count).map(|_| input.array().map(former)).collect::<Result<_, _>>()?;
        let (changed_by, readmitted_ms) = (ChangeMark::default(), None);
        return Ok(Tombstone {
            meter_id,
            system_title,
            keys,
            deleted_ms,
            changed_by,
            readmitted_ms,
        });
    }
    Ok(Tombstone {
        meter_id,
        system_title,
        keys: take_former(input)?,
        deleted_ms,
        changed_by: take_mark(input)?,
        readmitted_ms: input.flag()?.then(|| input.u64()).transpose()?,
    })
}

fn take_line(input: &mut Reader<'_>) -> Result<Line, BadRecord> {
    let name = LineName { fingerprint: Fingerprint(input.array()?), originator: input.title()? };
    let offset =
        |input: &mut Reader<'_>| Offset::new(i64::from_be_bytes(input.array()?)).ok_or(BadRecord);
    Ok(Line { name, offset: input.flag()?.then(|| offset(input)).transpose()? })
}

#[cfg(test)]
mod tests;
