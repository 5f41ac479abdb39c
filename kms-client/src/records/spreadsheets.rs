//! Files as spreadsheets and people save them.

use super::*;

const TITLE: &str = "4D4D4D0000BC614E";

fn header_and(row: &str) -> String {
    format!("meter_id,system_title,GUEK,GAK\n{row}\n")
}

/// The content of the one line of a file, as text: the meter, its title, its keys.
fn told(bytes: &[u8], format: ImportFormat) -> String {
    let lines: Vec<_> = ImportRecords::new(bytes, format).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    match &lines[0] {
        Err(bad) => bad.to_string(),
        Ok(line) => {
            let key = |key: &crate::meter::NewKey| {
                format!("{}={}", key.kind, hex::encode_upper(key.value.expose_key_bytes()))
            };
            let keys: Vec<_> = line.meter.keys.iter().map(key).collect();
            let title = title_text(&line.meter.system_title);
            format!("{} {title} {}", line.meter.meter_id, keys.join(" "))
        }
    }
}

fn csv(text: &str) -> String {
    told(text.as_bytes(), ImportFormat::Csv)
}

fn expected() -> String {
    format!("m {TITLE} GUEK={GUEK} GAK={GAK}")
}

fn utf16(text: &str, big_endian: bool) -> Vec<u8> {
    let bytes = |unit: u16| if big_endian { unit.to_be_bytes() } else { unit.to_le_bytes() };
    std::iter::once(0xFEFF).chain(text.encode_utf16()).flat_map(bytes).collect()
}

/// Hands out a byte at a time.
struct Slowly<'a>(&'a [u8]);

impl Read for Slowly<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let len = out.len().min(1);
        self.0.read(&mut out[..len])
    }
}

#[test]
fn each_separator_is_found_and_a_line_that_names_it_is_passed_over() {
    for separator in [",", ";", "\t"] {
        let text = header_and(&format!("m,{TITLE},{GUEK},{GAK}")).replace(',', separator);
        assert_eq!(csv(&text), expected());
        for said in ["sep=", "SEP=", "\u{feff}sep="] {
            assert_eq!(
                csv(&format!("{said}{separator}\r\n{text}")),
                expected(),
                "{said}{separator}"
            );
        }
    }
}

#[test]
fn blanks_case_and_empty_columns_do_not_matter() {
    for text in [
        format!(" Meter ID ; System Title;guek;\u{a0}Gak ;;\r\n m ; {TITLE} ;{GUEK};{GAK};;\r\n"),
        format!(
            "meter_id,system_title,GUEK,GAK\n,,,\n  ,\u{a0},,\n\"\",,,\nm,{TITLE},{GUEK},{GAK}\n,,,,,\n"
        ),
        format!(";;;\nmeter_id;system_title;GUEK;GAK\nm;{TITLE};{GUEK};{GAK};;;\n"),
        format!("meter_id\tsystem_title\tGUEK\tGAK\nm\t=\"{TITLE}\"\t'{GUEK}\t0x{GAK}\n"),
    ] {
        assert_eq!(csv(&text), expected(), "{text:?}");
    }
}

#[test]
fn yes_and_no_are_read_as_spreadsheets_write_them() {
    for (text, allowed) in [
        ("TRUE", true),
        ("true", true),
        ("Yes", true),
        ("1", true),
        ("FALSE", false),
        ("no", false),
        ("0", false),
    ] {
        let text = format!(
            "meter_id;system_title;allow_encryption_only;minimum_protection\nm;{TITLE};{text};authenticated\n"
        );
        let lines = read(&text, ImportFormat::Csv);
        let policy = lines[0].as_ref().unwrap().meter.policy.clone().unwrap();
        assert_eq!(policy.allow_encryption_only, allowed);
        assert_eq!(policy.minimum_protection, Some(MinimumProtection::Authenticated));
    }
    let text = format!("meter_id;system_title;allow_encryption_only\nm;{TITLE};maybe\n");
    assert!(
        csv(&text).contains("line 2: column 3 (allow_encryption_only): expected true or false")
    );
}

#[test]
fn a_file_in_utf_16_or_with_a_byte_order_mark_reads_the_same() {
    let json = json("m", "");
    for (text, format) in [
        (header_and(&format!("m,{TITLE},{GUEK},{GAK}")), ImportFormat::Csv),
        (json, ImportFormat::JsonLines),
    ] {
        for bytes in [
            text.clone().into_bytes(),
            format!("\u{feff}{text}").into_bytes(),
            utf16(&text, false),
            utf16(&text, true),
        ] {
            assert_eq!(told(&bytes, format), expected());
            let mut slow = ImportRecords::new(Slowly(&bytes), format);
            assert!(slow.next().unwrap().is_ok());
            assert!(slow.next().is_none());
            assert_eq!(slow.position(), bytes.len() as u64);
        }
    }
}

#[test]
fn keys_are_read_in_every_way_that_people_write_them() {
    let pairs: Vec<&str> = (0..16).map(|at| &GUEK[2 * at..2 * at + 2]).collect();
    for written in [
        GUEK.to_lowercase(),
        format!("0x{GUEK}"),
        pairs.join(":"),
        pairs.join(" "),
        pairs.join("-"),
        format!("0x{}", pairs.join(" 0x")),
    ] {
        assert_eq!(
            csv(&header_and(&format!("m,{TITLE},{written},{GAK}"))),
            expected(),
            "{written}"
        );
        let json = json("m", "").replace(GUEK, &written);
        assert_eq!(told(json.as_bytes(), ImportFormat::JsonLines), expected(), "{written}");
    }
}

/// The row, and what its refusal says. None of them is repeated.
#[test]
fn what_a_spreadsheet_broke_is_named_by_line_column_and_cause() {
    let number = "turned this into a number (such as 1.2E+31)";
    for (row, column, cause) in [
        (format!("m,{TITLE},1.2E+31,{GAK}"), "column 3 (GUEK)", "turned this key into a number"),
        (
            format!("m,{TITLE},{GUEK},\"1,23457E+31\""),
            "column 4 (GAK)",
            "turned this key into a number",
        ),
        (
            format!("m,{TITLE},12345678901234500000000000000000,{GAK}"),
            "column 3 (GUEK)",
            "keeps 15 digits",
        ),
        (format!("m,{TITLE},{},{GAK}", &GUEK[1..]), "column 3 (GUEK)", "31 hex digits"),
        (format!("m,{TITLE},{},{GAK}", &GUEK[2..]), "column 3 (GUEK)", "30 hex digits"),
        (format!("m,{TITLE},{},{GAK}", &GUEK[2..]), "column 3 (GUEK)", "drops leading zeros"),
        (format!("m,{TITLE},{GUEK} {GAK},"), "column 3 (GUEK)", "were two columns merged?"),
        (format!("m,{TITLE},{GUEK}{GAK}00,"), "column 3 (GUEK)", "66 hex digits"),
        (format!("m,4.9544E+15,{GUEK},{GAK}"), "column 2 (system_title)", number),
        (format!("m,{},{GUEK},{GAK}", &TITLE[1..]), "column 2 (system_title)", "15 hex digits"),
        (format!("1.23457E+12,{TITLE},{GUEK},{GAK}"), "column 1 (meter_id)", number),
        (
            format!("m,{TITLE},D4:9:1470F47126332B07D1923B3504188,{GAK}"),
            "column 3 (GUEK)",
            "two for each byte",
        ),
        (
            format!("m;{TITLE};{GUEK};{GAK}"),
            "line 2",
            "separator is a comma, and here stands a semicolon",
        ),
        (format!("m,{TITLE},{GUEK},{GAK},x"), "line 2", "is there a separator within a value?"),
        (format!("m,{TITLE},{GUEK}"), "line 2", "3 fields, where the header names 4 columns"),
    ] {
        let said = csv(&header_and(&row));
        assert!(
            said.starts_with("line 2: ") && said.contains(column) && said.contains(cause),
            "{row}: {said}"
        );
        for secret in [&GUEK[4..], &GAK[4..], "12345678", "1.23457", "4.95"] {
            assert!(!said.contains(secret), "{said}");
        }
    }
}

#[test]
fn a_file_that_is_no_such_text_is_called_so() {
    let text = header_and(&format!("m,{TITLE},{GUEK},{GAK}"));
    let without_mark = utf16(&text, false)[2..].to_vec();
    let macintosh = text.replace('\n', "\r").into_bytes();
    for (bytes, cause) in [
        (b"PK\x03\x04rest".to_vec(), "a spreadsheet's own file"),
        (without_mark, "UTF-16 without a byte order mark"),
        (macintosh, "CR alone"),
        (b"sep=|\nmeter_id|system_title\n".to_vec(), "not known"),
    ] {
        let said = told(&bytes, ImportFormat::Csv);
        assert!(said.starts_with("line 1: ") && said.contains(cause), "{said}");
    }
    let mut latin = format!("meter_id;system_title;logical_device_name\nm;{TITLE};Z").into_bytes();
    latin.extend(b"\xE4hler\n");
    let said = told(&latin, ImportFormat::Csv);
    assert!(said.contains("column 3: not UTF-8: save the file as \"CSV UTF-8\""), "{said}");
    let said = csv(&format!("meter_id;system_title;;GUEK\nm;{TITLE};{GAK};{GUEK}\n"));
    assert!(said.contains("column 3 holds a value and has no name"), "{said}");
}

#[test]
fn the_page_about_import_files_has_every_column_and_every_field() {
    let page = include_str!("../../../docs/IMPORT.md");
    for column in CSV_COLUMNS {
        let row = format!("\n| `{column}` | `");
        assert_eq!(page.matches(&row).count(), 1, "{column}");
    }
    for kind in crate::meter::KeyKind::ALL {
        assert!(page.contains(&format!("`\"kind\": \"{kind}\"`")), "{kind}");
    }
    // Everything that a meter's JSON has, by the name that a parser knows it by.
    let policy = serde_json::to_value(crate::meter::MeterPolicy {
        minimum_protection: Some(MinimumProtection::Authenticated),
        default_system_title: Some(dlms::SystemTitle::new([1; 8])),
        client_title: Some(dlms::SystemTitle::new([2; 8])),
        profile: Some(crate::meter::ProfileName::new("dlms").unwrap()),
        client_titles: vec![crate::meter::ClientTitle {
            security_setup: 0,
            client: 16,
            system_title: dlms::SystemTitle::new([3; 8]),
        }],
        ..Default::default()
    });
    let policy = policy.unwrap();
    assert_eq!(policy.as_object().unwrap().len(), 9);
    for field in policy.as_object().unwrap().keys() {
        assert!(page.contains(&format!("`policy.{field}`")), "{field}");
    }
    for text in
        [r#"{"x":1}"#, r#"{"meter_id":"m","system_title":"4D4D4D0000BC614E","keys":[{"x":1}]}"#]
    {
        let bad = NewMeter::from_json(text.as_bytes()).unwrap_err();
        let named = bad.reason.split_once("expected one of ").unwrap().1;
        for field in named.split(", ").map(|field| field.trim_matches('`')) {
            let known = [
                format!("`{field}`"),
                format!("keys[].{field}`"),
                format!("`{field}[]`"),
                format!("`{field}."),
            ];
            assert!(known.iter().any(|known| page.contains(known)), "{field}");
        }
    }
}

proptest! {
    #[test]
    fn any_text_comes_out_of_utf_16_as_it_went_in(text in "\\PC{0,300}", big_endian: bool, size in 1_usize..9) {
        let bytes = utf16(&text, big_endian);
        let mut whole = String::new();
        TextReader::new(Slowly(&bytes)).read_to_string(&mut whole).unwrap();
        prop_assert_eq!(&whole, &text);
        // However little is asked for at a time.
        let mut reader = TextReader::new(&bytes[..]);
        let (mut read, mut part) = (Vec::new(), vec![0; size]);
        loop {
            match reader.read(&mut part).unwrap() {
                0 => break,
                len => read.extend_from_slice(&part[..len]),
            }
        }
        prop_assert_eq!(&read[..], text.as_bytes());
    }

    #[test]
    fn no_utf_16_makes_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), csv: bool) {
        let mut file = vec![0xFF, 0xFE];
        file.extend(bytes);
        let format = if csv { ImportFormat::Csv } else { ImportFormat::JsonLines };
        let _ = ImportRecords::new(&file[..], format).count();
    }

    #[test]
    fn no_refusal_repeats_a_cell(cell in "[0-9a-fA-F.,:+ -]{8,80}", column in 0_usize..4) {
        let mut cells = ["m".to_owned(), TITLE.to_owned(), GUEK.to_owned(), GAK.to_owned()];
        cells[column] = format!("\"{cell}\"");
        for line in read(&header_and(&cells.join(",")), ImportFormat::Csv) {
            if let Err(bad) = line {
                prop_assert!(!bad.reason.contains(cell.trim()), "{}", bad);
                prop_assert!(!bad.reason.contains(GUEK) && !bad.reason.contains(GAK));
            }
        }
    }
}
