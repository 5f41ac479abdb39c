//! The objects of a meter: counters, clock, label, security setups, associations.

use crate::{
    dialect::{ClassVersion, Policy},
    meter::{
        setup::Changes,
        state::{Association, Meter},
    },
    service::{CLOCK, LABEL, Place, REPLY_TO_HLS, Request, Response, result},
    value::Value,
};

/// An answer, and the keys that a transfer brought to a setup.
pub(super) struct Served {
    pub(super) response: Response,
    pub(super) transfer: Option<(u8, Changes)>,
}

impl Meter {
    /// Does what is asked. `floor`: see [`Meter::reply_to_hls`].
    pub(super) fn serve(&mut self, with: Association, floor: u32, request: Request) -> Served {
        let mut transfer = None;
        let response = match request {
            Request::Get { id, at } => Response::Got { id, got: self.get(with, at) },
            Request::Set { id, at, value } => {
                Response::Set { id, result: self.set(with, at, &value) }
            }
            Request::Act { id, at, argument } if at == REPLY_TO_HLS => {
                let (result, returned) = self.reply_to_hls(with, floor, argument.as_ref());
                Response::Acted { id, result, returned }
            }
            Request::Act { id, at, argument } => {
                let result = match setup_at(at) {
                    Some(instance) if at.class == 64 && at.index == 2 => {
                        let (result, changes) = self.transfer(with, instance, argument.as_ref());
                        transfer = Some((instance, changes));
                        result
                    }
                    _ => result::UNDEFINED,
                };
                Response::Acted { id, result, returned: None }
            }
        };
        Served { response, transfer }
    }

    fn get(&mut self, with: Association, at: Place) -> Result<Value, u8> {
        if at == CLOCK {
            return Ok(Value::Octets(date_time(self.clock)));
        }
        if let [0, 0, 43, 1, setup, 255] = at.instance
            && (at.class, at.index) == (1, 2)
        {
            let setup = self.setup_mut(setup).ok_or(result::UNDEFINED)?;
            return Ok(Value::U32(setup.line().expected()));
        }
        if with.setup.is_none() {
            return Err(result::DENIED);
        }
        match setup_at(at) {
            _ if at == LABEL => Ok(Value::Text(self.label.clone())),
            Some(instance) if at.class == 64 => self.get_setup(instance, at),
            _ => Err(result::UNDEFINED),
        }
    }

    fn get_setup(&self, instance: u8, at: Place) -> Result<Value, u8> {
        let setup = self.setup(instance).ok_or(result::UNDEFINED)?;
        let client = self.associations.iter().find(|it| it.setup == Some(instance));
        match at.index {
            1 => Ok(Value::Octets(at.instance.to_vec())),
            2 => Ok(Value::Enum(self.policy())),
            3 => Ok(Value::Enum(setup.suite)),
            4 => Ok(Value::Octets(client.map_or(Vec::new(), |it| it.title.to_vec()))),
            5 => Ok(Value::Octets(self.title.to_vec())),
            _ => Err(result::UNDEFINED),
        }
    }

    /// Version 0 counts, version 1 has a bit for each direction.
    fn policy(&self) -> u8 {
        let policy = self.dialect.policy;
        match (self.dialect.class, policy) {
            (_, Policy::Nothing) => 0,
            (ClassVersion::V0, Policy::Authenticated) => 1,
            (ClassVersion::V0, Policy::Encrypted) => 2,
            (ClassVersion::V0, Policy::Both) => 3,
            (ClassVersion::V1, Policy::Authenticated) => 0x24,
            (ClassVersion::V1, Policy::Encrypted) => 0x48,
            (ClassVersion::V1, Policy::Both) => 0x6c,
        }
    }

    fn set(&mut self, with: Association, at: Place, value: &Value) -> u8 {
        if with.setup.is_none() {
            return result::DENIED;
        }
        match value {
            Value::Octets(bytes) if at == CLOCK => match seconds(bytes) {
                Some(clock) => self.clock = clock,
                None => return result::TYPE_UNMATCHED,
            },
            Value::Text(bytes) | Value::Octets(bytes) if at == LABEL => {
                self.label.clone_from(bytes)
            }
            _ if at == CLOCK || at == LABEL => return result::TYPE_UNMATCHED,
            _ => return result::UNDEFINED,
        }
        result::SUCCESS
    }
}

/// The security setup that an instance names.
fn setup_at(at: Place) -> Option<u8> {
    match at.instance {
        [0, 0, 43, 0, setup, 255] => Some(setup),
        _ => None,
    }
}

const DAY: u64 = 86_400;

/// COSEM date-time of seconds since 1970: 12 bytes; hundredths, deviation and status not said.
pub(super) fn date_time(seconds: u64) -> Vec<u8> {
    let (year, month, day) = civil(seconds / DAY);
    let (of_day, weekday) = (seconds % DAY, (seconds / DAY + 3) % 7 + 1);
    let mut out = year.to_be_bytes().to_vec();
    let rest = [month, day, weekday, of_day / 3600, of_day / 60 % 60, of_day % 60];
    out.extend(rest.map(|it| it as u8));
    out.extend([0xff, 0x80, 0x00, 0xff]);
    out
}

fn seconds(bytes: &[u8]) -> Option<u64> {
    let [high, low, month, day, _, hour, minute, second, _, _, _, _] = *bytes else { return None };
    let year = u64::from(u16::from_be_bytes([high, low]));
    let right = (1970..=2199).contains(&year) && hour < 24 && minute < 60 && second < 60;
    let from = (year.saturating_sub(1970)) * 365;
    let days = (from..from + 366 + 60)
        .find(|it| civil(*it) == (year as u16, u64::from(month), u64::from(day)))?;
    let of_day = u64::from(hour) * 3600 + u64::from(minute) * 60 + u64::from(second);
    right.then_some(days * DAY + of_day)
}

/// Year, month and day of the days since 1970, in the Gregorian calendar.
fn civil(days: u64) -> (u16, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year as u16, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_it_is_read() {
        // 2024-02-29, a Thursday.
        let bytes = date_time(1_709_217_296);
        assert_eq!(bytes, [0x07, 0xe8, 2, 29, 4, 14, 34, 56, 0xff, 0x80, 0, 0xff]);
        for clock in [0, 951_782_400, 1_709_217_296, 1_798_761_599, 4_102_444_800, 7_258_118_399] {
            assert_eq!(seconds(&date_time(clock)), Some(clock));
        }
        let mut none = date_time(0);
        none[3] = 32;
        assert_eq!(seconds(&none), None);
        assert_eq!(seconds(&none[..11]), None);
    }
}
