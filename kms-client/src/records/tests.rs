//! Import files, good and bad.

use proptest::prelude::*;

use super::*;
use crate::meter::{KeyKind, MinimumProtection, NewMeter, Protection};
use crate::names::title_text;

const GUEK: &str = "D491470F47126332B07D1923B3504188";
const GAK: &str = "E80A1C5DCB8FF2B6E3DCCD45A4F9C601";

fn read(text: &str, format: ImportFormat) -> Vec<Result<MeterRecord, BadRecord>> {
    ImportRecords::new(text.as_bytes(), format).collect()
}

fn json(id: &str, more: &str) -> String {
    format!(
        r#"{{"meter_id":"{id}","system_title":"4d4d4d0000bc614e","keys":[{{"kind":"GUEK","value":"{GUEK}"}},{{"kind":"GAK","value":"{GAK}"}}]{more}}}"#
    )
}

#[test]
fn a_json_line_is_read_with_its_keys_and_policy() {
    let policy = r#","policy":{"minimum_protection":"AUTHENTICATED_ENCRYPTED","client_title":"4D4D4D0000000001"}"#;
    let lines = read(&json("m-1", policy), ImportFormat::JsonLines);
    let line = lines[0].as_ref().unwrap();
    assert_eq!(line.place.number(), 1);
    assert_eq!(line.meter.meter_id.as_str(), "m-1");
    assert_eq!(title_text(&line.meter.system_title), "4D4D4D0000BC614E");
    assert_eq!(hex::encode_upper(line.meter.keys[1].value.expose_key_bytes()), GAK);
    let policy = line.meter.policy.as_ref().unwrap();
    assert_eq!(policy.minimum_protection, Some(MinimumProtection::AuthenticatedEncrypted));
    assert!(policy.client_title.is_some());
}

#[test]
fn a_bad_json_line_does_not_stop_the_others_and_blank_lines_count() {
    let text = format!("{}\n\nnot json\r\n{}", json("a", ""), json("b", ""));
    let lines = read(&text, ImportFormat::JsonLines);
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0].as_ref().unwrap().place.number(), 1);
    assert_eq!(lines[1].as_ref().unwrap_err().place.number(), 3);
    assert_eq!(lines[2].as_ref().unwrap().place.number(), 4);
}

#[test]
fn an_unknown_field_is_refused_by_name_at_every_level() {
    for more in [r#","extra":1"#, r#","policy":{"extra":1}"#] {
        let lines = read(&json("a", more), ImportFormat::JsonLines);
        let bad = lines[0].as_ref().unwrap_err();
        assert!(bad.reason.contains("unknown field `extra`"), "{bad}");
    }
}

#[test]
fn no_message_repeats_a_key_that_slipped_into_another_field() {
    let keys = format!(r#","keys":"{GUEK}""#);
    for text in [
        format!(r#"{{"meter_id":"a","system_title":"{GUEK}"}}"#),
        format!(r#"{{"meter_id":"a","system_title":"4D4D4D0000BC614E"{keys}}}"#),
        format!(r#"{{"{GUEK}":"a"}}"#),
        format!(
            r#"{{"meter_id":"a","system_title":"4D4D4D0000BC614E","keys":[{{"kind":"{GUEK}"}}]}}"#
        ),
        format!(r#"{{"meter_id":"a","policy":{{"allow_encryption_only":"x\"{GUEK}"}}}}"#),
        format!(r#"{{"meter_id":"a","keys":[{{"kind":"GUEK","value":"{GUEK}0"}}]}}"#),
        r#"{"meter_id":1234567812345678}"#.into(),
    ] {
        let lines = read(&text, ImportFormat::JsonLines);
        let bad = lines[0].as_ref().unwrap_err().to_string();
        assert!(!bad.contains("47126332") && !bad.contains("12345678"), "{bad}");
    }
}

#[test]
fn a_csv_row_is_read_by_the_names_of_its_columns() {
    let text = format!(
        "\u{feff}GAK,meter_id,system_title,GUEK,KEK,protection,security_setup,allow_encryption_only\r\n\
         {GAK},m-1,4D4D4D0000BC614E,\"{GUEK}\",{GAK},HSM,2,true\r\n"
    );
    let lines = read(&text, ImportFormat::Csv);
    let line = lines[0].as_ref().unwrap();
    assert_eq!(line.place.number(), 2);
    let protections: Vec<_> =
        line.meter.keys.iter().map(|key| (key.kind, key.protection, key.security_setup)).collect();
    assert_eq!(
        protections,
        [
            (KeyKind::Gak, None, 2),
            (KeyKind::Guek, Some(Protection::Hsm), 2),
            (KeyKind::Kek, None, 2)
        ]
    );
    assert!(line.meter.policy.as_ref().unwrap().allow_encryption_only);
}

#[test]
fn empty_policy_cells_leave_the_policy_to_its_defaults() {
    let text = format!("meter_id,system_title,GUEK,client_title\nm,4D4D4D0000BC614E,{GUEK},\n");
    let lines = read(&text, ImportFormat::Csv);
    assert!(lines[0].as_ref().unwrap().meter.policy.is_none());
}

#[test]
fn a_header_that_is_not_understood_ends_the_import_at_line_one() {
    let row = format!("m,4D4D4D0000BC614E,{GUEK}");
    for header in ["meter_id,system_title,guekk", "meter_id,GUEK,GUEK", "meter_id,GUEK", &row] {
        let lines = read(&format!("{header}\n{row}\n"), ImportFormat::Csv);
        assert_eq!(lines.len(), 1, "{header}");
        let bad = lines[0].as_ref().unwrap_err();
        assert_eq!((bad.place.number(), bad.code), (1, "BAD_HEADER"));
        assert!(!bad.reason.contains(GUEK));
    }
}

#[test]
fn a_bad_csv_row_is_refused_with_its_number_and_the_next_is_read() {
    let good = format!("m,4D4D4D0000BC614E,{GUEK}");
    for bad in ["m", "m,4D,1,2", "\"m,4D4D4D0000BC614E,", "m,4D4D4D0000BC614E,XX"] {
        let text = format!("meter_id,system_title,GUEK\n{bad}\n{good}\n");
        let lines = read(&text, ImportFormat::Csv);
        assert_eq!(lines.len(), 2, "{bad}");
        assert_eq!(lines[0].as_ref().unwrap_err().place.number(), 2, "{bad}");
        assert_eq!(lines[1].as_ref().unwrap().place.number(), 3, "{bad}");
    }
}

#[test]
fn a_line_that_is_too_long_is_passed_over_and_the_next_has_its_number() {
    let text = format!("{}\n{}", "x".repeat(LINE_LEN_MAX + 1), json("a", ""));
    let lines = read(&text, ImportFormat::JsonLines);
    assert_eq!(lines[0].as_ref().unwrap_err().code, "LINE_TOO_LONG");
    assert_eq!(lines[1].as_ref().unwrap().place.number(), 2);
}

#[test]
fn the_position_after_the_last_line_is_the_length_of_the_file() {
    let text = format!("{}\n{}\n", json("a", ""), json("b", ""));
    let mut lines = ImportRecords::new(text.as_bytes(), ImportFormat::JsonLines);
    while lines.next().is_some() {}
    assert_eq!(lines.position(), text.len() as u64);
}

#[path = "spreadsheets.rs"]
mod spreadsheets;

/// A file made of pieces that parsers stumble over.
fn any_file() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[ -~]{0,30}",
        Just(json("a", "")),
        Just("meter_id,system_title,GUEK,GAK".to_owned()),
        Just(format!("m,4D4D4D0000BC614E,{GUEK},{GAK}")),
        Just("\"".to_owned()),
        Just("\r".to_owned()),
        Just(String::new()),
        "\\PC{0,20}",
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.join("\n"))
}

proptest! {
    #[test]
    fn no_file_makes_a_parser_panic_and_numbers_only_rise(text in any_file(), csv: bool) {
        let format = if csv { ImportFormat::Csv } else { ImportFormat::JsonLines };
        let mut last = 0;
        for line in ImportRecords::new(text.as_bytes(), format) {
            let number = match line { Ok(line) => line.place.number(), Err(bad) => bad.place.number() };
            prop_assert!(number > last);
            last = number;
        }
        prop_assert!(last <= text.split('\n').count() as u64);
    }

    #[test]
    fn no_bytes_make_a_parser_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        csv: bool,
    ) {
        let mut file = if csv { b"meter_id,system_title,GUEK\n".to_vec() } else { Vec::new() };
        file.extend(bytes);
        let format = if csv { ImportFormat::Csv } else { ImportFormat::JsonLines };
        let _ = ImportRecords::new(&file[..], format).count();
    }

    #[test]
    fn every_line_of_a_json_file_keeps_its_number(bad in proptest::collection::vec(any::<bool>(), 1..30)) {
        let line = |bad: &bool| if *bad { "{".to_owned() } else { json("a", "") };
        let text = bad.iter().map(line).collect::<Vec<_>>().join("\n");
        let lines = read(&text, ImportFormat::JsonLines);
        prop_assert_eq!(lines.len(), bad.len());
        for (index, (line, bad)) in lines.iter().zip(bad).enumerate() {
            let number = match line { Ok(line) => line.place.number(), Err(bad) => bad.place.number() };
            prop_assert_eq!(number, index as u64 + 1);
            prop_assert_eq!(line.is_err(), bad);
        }
    }
}
