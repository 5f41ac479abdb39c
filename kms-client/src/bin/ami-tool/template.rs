//! `meter import --template`: a file to begin with. It can be imported as it is printed, with
//! `--allow-test-keys`, for its keys are published ones. `docs/IMPORT.md` says what each field means.

use kms_client::CSV_COLUMNS;
use serde_json::json;

use crate::args::Template;
use crate::failure::{Exit, Failure};
use crate::text::{say, say_json};

const TITLES: [&str; 2] = ["4D4D4D0000000001", "4D4D4D0000000002"];
/// From the Green Book and RFC 3394: the service refuses them unless it is told that it is a test.
const GUEK: [&str; 2] = ["000102030405060708090A0B0C0D0E0F", "101112131415161718191A1B1C1D1E1F"];
const GAK: [&str; 2] = ["D0D1D2D3D4D5D6D7D8D9DADBDCDDDEDF", "FFEEDDCCBBAA99887766554433221100"];
const CLIENT: &str = "4D4D4D0000BC614E";

pub(crate) fn print(format: Template) -> Result<Exit, Failure> {
    match format {
        Template::Csv => {
            say(&CSV_COLUMNS.join(","))?;
            say(&row(|column| full(column).to_owned()))?;
            say(&row(|column| least(column).to_owned()))?;
        }
        Template::Json => {
            say_json(&json!({
                "meter_id": "METER-0001",
                "system_title": TITLES[0],
                "logical_device_name": "MMM0000000000001",
                "keys": [
                    { "kind": "GUEK", "value": GUEK[0], "security_setup": 0, "protection": "MEMORY" },
                    { "kind": "GAK", "value": GAK[0], "security_setup": 0, "protection": "MEMORY" },
                ],
                "policy": {
                    "minimum_protection": "AUTHENTICATED",
                    "allow_encryption_only": false,
                    "allow_withheld_authentication_key": false,
                    "default_system_title": TITLES[0],
                    "client_title": CLIENT,
                    "general_ciphering_omit_header": false,
                    "allow_compromised": false,
                    "client_titles": [
                        { "security_setup": 0, "client": 16, "system_title": CLIENT },
                    ],
                },
            }))?;
            say_json(&json!({
                "meter_id": "METER-0002",
                "system_title": TITLES[1],
                "keys": [{ "kind": "GUEK", "value": GUEK[1] }, { "kind": "GAK", "value": GAK[1] }],
            }))?;
        }
    }
    Ok(Exit::Good)
}

fn row(cell: impl Fn(&str) -> String) -> String {
    CSV_COLUMNS.iter().map(|column| cell(column)).collect::<Vec<_>>().join(",")
}

fn full(column: &str) -> &'static str {
    match column {
        "meter_id" => "METER-0001",
        "system_title" | "default_system_title" => TITLES[0],
        "logical_device_name" => "MMM0000000000001",
        "GUEK" => GUEK[0],
        "GAK" => GAK[0],
        "protection" => "MEMORY",
        "security_setup" => "0",
        "minimum_protection" => "AUTHENTICATED",
        "client_title" => CLIENT,
        "allow_encryption_only"
        | "allow_withheld_authentication_key"
        | "general_ciphering_omit_header"
        | "allow_compromised" => "false",
        _ => "",
    }
}

fn least(column: &str) -> &'static str {
    match column {
        "meter_id" => "METER-0002",
        "system_title" => TITLES[1],
        "GUEK" => GUEK[1],
        "GAK" => GAK[1],
        _ => "",
    }
}
