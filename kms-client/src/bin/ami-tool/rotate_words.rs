//! The words of a campaign's flags: times, windows, kinds, which meters.

use kms_client::{CampaignWindow, KeyKind, MeterSelection};

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY_S: u64 = 24 * 60 * 60;

/// GUEK, GAK or both, each once: one word for clap.
#[derive(Clone, Debug)]
pub(crate) struct Kinds(pub(crate) Vec<KeyKind>);

/// GUEK, GAK or both, each once.
pub(crate) fn kinds(text: &str) -> Result<Kinds, String> {
    let mut all = Vec::new();
    for word in text.split(',') {
        let known = [KeyKind::Guek, KeyKind::Gak].into_iter();
        let kind = known.into_iter().find(|kind| kind.word().eq_ignore_ascii_case(word.trim()));
        match kind {
            Some(kind) if !all.contains(&kind) => all.push(kind),
            _ => return Err("a campaign rotates guek, gak, or both, each named once".to_owned()),
        }
    }
    Ok(Kinds(all))
}

/// `90s`, `15m`, `12h`, `1d`.
pub(crate) fn seconds(text: &str) -> Result<u32, String> {
    let problem = || "a time is a number of s, m, h or d: 90s, 15m, 12h, 1d".to_owned();
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 60 * 60,
        Some('d') => DAY_S,
        _ => return Err(problem()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| problem())?;
    let seconds = number.checked_mul(unit).and_then(|seconds| u32::try_from(seconds).ok());
    seconds.filter(|seconds| *seconds > 0).ok_or_else(problem)
}

/// `22:00-05:00`, `22:00-05:00/mon,tue`, `08:00-18:00/mon-fri`.
pub(crate) fn window(text: &str) -> Result<CampaignWindow, String> {
    let (times, days) =
        text.split_once('/').map_or((text, None), |(times, days)| (times, Some(days)));
    let (from, to) = times.split_once('-').ok_or_else(bad_window)?;
    let (from_minute, to_minute) = (minute(from)?, minute(to)?);
    if from_minute == to_minute {
        return Err(bad_window());
    }
    let weekdays = days.map_or(Ok(0), weekdays)?;
    Ok(CampaignWindow { from_minute, to_minute, weekdays })
}

fn bad_window() -> String {
    "a window is from one time of the day to another, in UTC: 22:00-05:00, 22:00-05:00/mon,tue or 08:00-18:00/mon-fri"
        .to_owned()
}

fn minute(text: &str) -> Result<u16, String> {
    let (hours, minutes) = text.split_once(':').ok_or_else(bad_window)?;
    let number = |digits: &str, max: u16| {
        let is_two = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse::<u16>().ok().filter(|number| is_two && *number <= max);
        number.ok_or_else(bad_window)
    };
    let minute = number(hours, 24)? * 60 + number(minutes, 59)?;
    if minute <= 24 * 60 { Ok(minute) } else { Err(bad_window()) }
}

fn weekdays(text: &str) -> Result<u8, String> {
    let day = |word: &str| {
        let found = DAYS.iter().position(|day| day.eq_ignore_ascii_case(word));
        found.ok_or_else(bad_window)
    };
    let mut bits = 0;
    for word in text.split(',') {
        let (from, to) = word.split_once('-').unwrap_or((word, word));
        let (from, to) = (day(from)?, day(to)?);
        // Over Sunday, too.
        let days = (to + DAYS.len() - from) % DAYS.len() + 1;
        (from..from + days).for_each(|day| bits |= 1 << (day % DAYS.len()));
    }
    Ok(bits)
}

/// A window, as it is typed.
pub(crate) fn window_text(window: &CampaignWindow) -> String {
    let CampaignWindow { from_minute, to_minute, weekdays } = window;
    let time = |minute: &u16| format!("{:02}:{:02}", minute / 60, minute % 60);
    let days: Vec<&str> = (0..)
        .zip(DAYS)
        .filter_map(|(bit, day)| (weekdays & (1 << bit) != 0).then_some(day))
        .collect();
    let days = if days.is_empty() { String::new() } else { format!("/{}", days.join(",")) };
    format!("{}-{}{days}", time(from_minute), time(to_minute))
}

/// Seconds, as they are typed.
pub(crate) fn seconds_text(seconds: u32) -> String {
    let units = [(24 * 60 * 60, 'd'), (60 * 60, 'h'), (60, 'm')];
    let whole = units.into_iter().find(|(unit, _)| seconds > 0 && seconds % unit == 0);
    whole.map_or_else(
        || format!("{seconds}s"),
        |(unit, letter)| format!("{}{letter}", seconds / unit),
    )
}

/// `profile=…,id=PREFIX,title=HEX,older-than=365d,compromised`.
pub(crate) fn selection(text: &str) -> Result<MeterSelection, String> {
    let mut wanted = MeterSelection::default();
    for word in text.split(',') {
        match word.split_once('=') {
            None if word == "compromised" => wanted.compromised = true,
            Some((name, value)) if !value.is_empty() => select(&mut wanted, name, value)?,
            _ => return Err(no_such(word)),
        }
    }
    Ok(wanted)
}

fn select(wanted: &mut MeterSelection, name: &str, value: &str) -> Result<(), String> {
    match name {
        "profile" => value.clone_into(&mut wanted.profile),
        "id" => value.clone_into(&mut wanted.id_prefix),
        "title" => wanted.title_prefix = title_prefix(value)?,
        "older-than" => wanted.older_than_days = days(value)?,
        _ => return Err(no_such(name)),
    }
    Ok(())
}

fn no_such(word: &str) -> String {
    format!(
        "{word:?} is none of profile=NAME, id=PREFIX, title=HEX, older-than=365d and compromised"
    )
}

fn title_prefix(digits: &str) -> Result<Vec<u8>, &'static str> {
    let bytes = hex::decode(digits).ok().filter(|bytes| bytes.len() <= 8);
    bytes.ok_or("title= takes the beginning of a system title, 2 to 16 hex digits")
}

fn days(text: &str) -> Result<u32, &'static str> {
    let days = text.strip_suffix('d').and_then(|days| days.parse().ok());
    days.filter(|days| *days > 0).ok_or("older-than= takes days: older-than=365d")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, said) in [("90s", 90), ("15m", 900), ("12h", 43_200), ("365d", 31_536_000)] {
            assert_eq!(seconds(text), Ok(said));
            assert_eq!(seconds_text(said), text);
        }
        for bad in ["", "15", "m", "0m", "-1m", "1.5h", "9999999d", "15 m", "15µ"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn windows_are_read_and_written() {
        for (text, from_minute, to_minute, weekdays) in [
            ("22:00-05:00", 1_320, 300, 0),
            ("00:00-24:00/sat,sun", 0, 1_440, 0b110_0000),
            ("22:00-05:00/mon,tue", 1_320, 300, 0b11),
        ] {
            let read = CampaignWindow { from_minute, to_minute, weekdays };
            assert_eq!(window(text), Ok(read), "{text}");
            assert_eq!(window_text(&read), text);
        }
        assert_eq!(window("08:00-18:00/MON-fri").unwrap().weekdays, 0b1_1111);
        assert_eq!(window("08:00-18:00/sat-mon").unwrap().weekdays, 0b110_0001);
        for bad in [
            "",
            "22:00",
            "22-05",
            "22:00-22:00",
            "24:01-05:00",
            "22:60-05:00",
            "2:00-05:00",
            "22:00-05:00/",
            "22:00-05:00/day",
        ] {
            assert!(window(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_selection_is_what_is_said_of_it_and_no_word_is_passed_over() {
        let all = selection("profile=acme,id=MTR-,title=4D4D4D,older-than=365d,compromised");
        let wanted = MeterSelection {
            meter_ids: Vec::new(),
            profile: "acme".into(),
            id_prefix: "MTR-".into(),
            title_prefix: vec![0x4D; 3],
            older_than_days: 365,
            compromised: true,
        };
        assert_eq!(all, Ok(wanted));
        for bad in [
            "",
            ",",
            "profile=",
            "id",
            "title=4",
            "title=4D4D4D4D4D4D4D4D4D",
            "older-than=1y",
            "older-than=0d",
            "compromised=no",
            "all",
        ] {
            assert!(selection(bad).is_err(), "{bad}");
        }
    }
}
