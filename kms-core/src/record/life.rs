//! The lives of a meter's keys, behind all that a record of the schemas before has.
//!
//! Written if there is anything to say: so a meter whose keys were never rotated has the record that it had, and a server
//! of the release before reads it.

use super::reader::{BadRecord, Reader, RecordTooLong, numbered, put_bytes};
use crate::{
    Carrier, KeyId, KeyLife, KeyState, MeterRecord, Numbered as _, PastState, SecuritySetup,
    Transfer,
};

/// The longest name of a request.
const REQUEST_MAX: usize = 255;

/// Whether a meter says what came with this schema.
pub(super) fn has_life(meter: &MeterRecord) -> bool {
    meter.legal_hold_ms.is_some()
        || meter.policy.allow_compromised
        || meter.keys.iter().any(|key| key.life != KeyLife::default())
}

pub(super) fn put(out: &mut Vec<u8>, meter: &MeterRecord) -> Result<(), RecordTooLong> {
    out.push(u8::from(meter.policy.allow_compromised));
    put_time(out, meter.legal_hold_ms);
    meter.keys.iter().try_for_each(|key| put_one(out, &key.life))
}

fn put_one(out: &mut Vec<u8>, life: &KeyLife) -> Result<(), RecordTooLong> {
    let KeyLife { reason, past, preferred_ms, usable_until_ms, destroy_at_ms, transfer } = life;
    out.push(reason.number());
    let (len, most) = (past.len(), KeyState::ALL.len() - 1);
    if len > most {
        return Err(RecordTooLong { what: "former states of a key", len, most });
    }
    out.push(len as u8); // At most four.
    past.iter().for_each(|past| put_past(out, past));
    out.extend_from_slice(&preferred_ms.to_be_bytes());
    put_time(out, *usable_until_ms);
    put_time(out, *destroy_at_ms);
    match transfer {
        None => out.push(0),
        Some(transfer) => {
            out.push(1);
            put_transfer(out, transfer)?;
        }
    }
    Ok(())
}

/// One of the states that a key was in before.
fn put_past(out: &mut Vec<u8>, PastState { state, since_ms, reason }: &PastState) {
    out.push(state.number());
    out.extend_from_slice(&since_ms.to_be_bytes());
    out.push(reason.number());
}

fn put_transfer(out: &mut Vec<u8>, transfer: &Transfer) -> Result<(), RecordTooLong> {
    let Transfer { request, kek, class_version, carrier, wrapped, unreplicated, sent_ms, result } =
        transfer;
    let Carrier { setup, client, form } = carrier;
    let (len, most) = (request.len(), REQUEST_MAX);
    if len > most {
        return Err(RecordTooLong { what: "bytes of a request's name", len, most });
    }
    put_bytes(out, "bytes of a request's name", request.as_bytes())?;
    out.extend_from_slice(&kek.0);
    out.extend_from_slice(&[*class_version, setup.0]);
    out.extend_from_slice(&client.to_be_bytes());
    out.push(form.number());
    put_bytes(out, "bytes of a key for the meter", wrapped)?;
    out.push(u8::from(*unreplicated));
    put_time(out, *sent_ms);
    match result {
        None => out.push(0),
        Some((result, at_ms)) => {
            out.push(result.number());
            out.extend_from_slice(&at_ms.to_be_bytes());
        }
    }
    Ok(())
}

fn put_time(out: &mut Vec<u8>, time: Option<u64>) {
    out.push(u8::from(time.is_some()));
    out.extend(time.iter().flat_map(|ms| ms.to_be_bytes()));
}

pub(super) fn take(input: &mut Reader<'_>, meter: &mut MeterRecord) -> Result<(), BadRecord> {
    meter.policy.allow_compromised = input.flag()?;
    meter.legal_hold_ms = take_time(input)?;
    for key in &mut meter.keys {
        key.life = take_one(input)?;
    }
    Ok(())
}

fn take_one(input: &mut Reader<'_>) -> Result<KeyLife, BadRecord> {
    let reason = numbered(input.u8()?)?;
    let count = usize::from(input.u8()?);
    if count >= KeyState::ALL.len() {
        return Err(BadRecord);
    }
    let past = (0..count).map(|_| {
        let state = numbered(input.u8()?)?;
        Ok(PastState { state, since_ms: input.u64()?, reason: numbered(input.u8()?)? })
    });
    Ok(KeyLife {
        reason,
        past: past.collect::<Result<_, BadRecord>>()?,
        preferred_ms: input.u64()?,
        usable_until_ms: take_time(input)?,
        destroy_at_ms: take_time(input)?,
        transfer: input.flag()?.then(|| take_transfer(input)).transpose()?,
    })
}

fn take_transfer(input: &mut Reader<'_>) -> Result<Transfer, BadRecord> {
    let request = input.text()?.to_owned();
    if request.len() > REQUEST_MAX {
        return Err(BadRecord);
    }
    let kek = KeyId(input.array()?);
    let [class_version, setup] = input.array()?;
    let client = input.u16()?;
    let form = numbered(input.u8()?)?;
    let wrapped = input.bytes()?.to_vec();
    let unreplicated = input.flag()?;
    let sent_ms = take_time(input)?;
    let result = match input.u8()? {
        0 => None,
        number => Some((numbered(number)?, input.u64()?)),
    };
    let carrier = Carrier { setup: SecuritySetup(setup), client, form };
    Ok(Transfer { request, kek, class_version, carrier, wrapped, unreplicated, sent_ms, result })
}

fn take_time(input: &mut Reader<'_>) -> Result<Option<u64>, BadRecord> {
    input.flag()?.then(|| input.u64()).transpose()
}
