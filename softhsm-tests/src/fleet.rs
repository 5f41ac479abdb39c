//! The meters that the published telegrams come from, and what must become of each telegram.

use serde::Serialize;

use crate::{
    DecryptRequest,
    vectors::{Vector, byte_at, carries_title, form, is_request},
};

/// One line of an import file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MeterLine {
    /// Our name for it.
    pub meter_id: String,
    /// In hexadecimal.
    pub system_title: String,
    /// Several values of one kind are its versions, oldest first.
    pub keys: Vec<KeyLine>,
    /// The policy: what is accepted from it.
    pub policy: PolicyLine,
}

/// One key of a [`MeterLine`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyLine {
    /// As in `ami.kms.v1.KeyKind`.
    pub kind: &'static str,
    /// Of which security setup.
    pub security_setup: u32,
    /// In hexadecimal.
    pub value: String,
}

/// The policy of a [`MeterLine`]; what is absent has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyLine {
    /// Encryption-only APDUs are normal for this meter.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_encryption_only: bool,
    /// We are not given its authentication key.
    #[serde(skip_serializing_if = "is_false")]
    pub allow_withheld_authentication_key: bool,
    /// The utility's title towards it, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_title: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A telegram with what must become of it.
#[derive(Clone, Debug)]
pub struct Telegram {
    /// Name of the vector.
    pub id: String,
    /// The meter it belongs to.
    pub meter_id: String,
    /// The request.
    pub request: DecryptRequest,
    /// Country of the meter, or what else is known of where it comes from.
    pub origin: &'static str,
    /// Name of the APDU.
    pub form: &'static str,
    /// DLMS security suite.
    pub suite: u8,
    /// The expected verdict.
    pub verdict: &'static str,
    /// The expected plaintext, in hexadecimal; empty if it must not open.
    pub plaintext: String,
    /// The fault of the telegram; empty if it has none.
    pub fault: &'static str,
}

/// Sessions in which requests were published under the client's title: whose they are.
struct Session {
    vectors: &'static str,
    client: &'static str,
    meter: &'static str,
}

const SESSIONS: [Session; 2] = [
    Session { vectors: "kaifa-live-", client: "0000000000000000", meter: "4B464D6410000002" },
    Session { vectors: "gosem-", client: "4349520000000001", meter: "4C475A2022604828" },
];

/// The same meter with a wrong authentication key: kept apart as a security setup of its own.
const UNDER_SETUP_1: &str = "esphome-kamstrup-wrong-ak";

/// Of whom `vector` speaks, in hexadecimal: not always its originator.
fn meter_title(vector: &Vector) -> &str {
    let session = SESSIONS.iter().find(|session| {
        vector.id.starts_with(session.vectors) && vector.system_title == session.client
    });
    session.map_or(&vector.system_title, |session| session.meter)
}

/// A readable name: the maker's three letters, then the serial number in hexadecimal.
pub fn meter_id(title: &str) -> String {
    let maker: Vec<u8> = (0..3).map(|index| byte_at(title, index)).collect();
    match std::str::from_utf8(&maker) {
        Ok(letters) if maker.iter().all(u8::is_ascii_uppercase) => {
            format!("{letters}-{}", &title[6..])
        }
        _ => title.to_owned(),
    }
}

fn setup(vector: &Vector) -> u32 {
    u32::from(vector.id == UNDER_SETUP_1)
}

/// The meters, in the order in which `vectors` first mention them.
pub fn meters(vectors: &[Vector]) -> Vec<MeterLine> {
    let mut titles: Vec<&str> = Vec::new();
    for title in vectors.iter().map(meter_title) {
        if !titles.contains(&title) {
            titles.push(title);
        }
    }
    titles.into_iter().map(|title| meter(title, vectors)).collect()
}

fn meter(title: &str, vectors: &[Vector]) -> MeterLine {
    let of_meter = || vectors.iter().filter(|vector| meter_title(vector) == title);
    let mut keys: Vec<KeyLine> = Vec::new();
    for key in of_meter().flat_map(keys_of) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let ordinary = || of_meter().filter(|vector| !vector.has_agreed_key());
    let client_title = ordinary().find(|vector| is_request(vector.tag()));
    let policy = PolicyLine {
        allow_encryption_only: ordinary().any(|vector| !is_tagged(vector)),
        allow_withheld_authentication_key: ordinary()
            .any(|vector| is_tagged(vector) && vector.verified == "plaintext"),
        client_title: client_title.map(|vector| vector.system_title.clone()),
    };
    MeterLine { meter_id: meter_id(title), system_title: title.to_owned(), keys, policy }
}

fn keys_of(vector: &Vector) -> Vec<KeyLine> {
    let known = [("guek", "GUEK"), ("ak", "GAK"), ("dedicated", "DEDICATED")];
    let key = |(name, kind)| {
        let value = vector.keys.get(name)?.clone();
        Some(KeyLine { kind, security_setup: setup(vector), value })
    };
    known.into_iter().filter_map(key).collect()
}

/// SC bit 4.
fn is_tagged(vector: &Vector) -> bool {
    vector.security_control() & 0x10 != 0
}

/// The telegrams, each with what must become of it.
pub fn telegrams(vectors: &[Vector]) -> Vec<Telegram> {
    vectors.iter().map(telegram).collect()
}

fn telegram(vector: &Vector) -> Telegram {
    let meter_id = meter_id(meter_title(vector));
    let verdict = match vector.verified.as_str() {
        _ if vector.has_agreed_key() => "UNSUPPORTED",
        "tag" => "OK",
        "plaintext" => "OK_UNAUTHENTICATED",
        _ => "MIC_FAILURE",
    };
    let opens = verdict.starts_with("OK");
    Telegram {
        request: DecryptRequest {
            id: Some(vector.id.clone()),
            meter: (!carries_title(vector.tag())).then(|| meter_id.clone()),
            security_setup: Some(setup(vector)).filter(|setup| *setup != 0),
            apdu: vector.apdu_hex.clone(),
            ..DecryptRequest::default()
        },
        id: vector.id.clone(),
        meter_id,
        origin: origin(vector),
        form: form(vector.tag()),
        suite: vector.suite,
        verdict,
        plaintext: if opens { vector.plaintext_hex.clone() } else { String::new() },
        fault: fault(&vector.id),
    }
}

fn origin(vector: &Vector) -> &'static str {
    let says = |text: &str| vector.country_meter.contains(text);
    match () {
        () if says("Austria") => "Austria",
        () if says("Denmark") => "Denmark",
        () if says("Luxembourg") => "Luxembourg",
        () if says("(lab)") => "lab",
        () if says("field device") => "field",
        () if vector.source.contains("Green Book") => "Green Book",
        () => "-",
    }
}

fn fault(id: &str) -> &'static str {
    match id {
        "dsmr_parser-corrupted-byte50" => "one byte changed on the way",
        UNDER_SETUP_1 => "wrong authentication key",
        "gb-wrong-system-title" => "right keys, another device's title",
        _ if id.starts_with("gosem-wrongkeys-") => "under keys that we do not have",
        _ => "",
    }
}

/// Telegrams that nobody published: published ones, changed by an attacker.
pub fn forgeries(telegrams: &[Telegram]) -> Vec<Telegram> {
    let forge = |id: &str, fault, verdict, change: fn(&mut Vec<u8>)| {
        let original = telegrams.iter().find(|telegram| telegram.id == id)?;
        let mut apdu = hex::decode(&original.request.apdu).ok()?;
        change(&mut apdu);
        let mut forged = original.clone();
        forged.request.id = Some(format!("{id}-forged"));
        forged.request.apdu = hex::encode_upper(apdu);
        forged.plaintext.clear();
        Some(Telegram { fault, verdict, ..forged })
    };
    [
        forge("openhab-smarty", "one bit of the tag flipped", "MIC_FAILURE", |apdu| {
            if let Some(last) = apdu.last_mut() {
                *last ^= 1;
            }
        }),
        forge("u9n-udp-01", "from a meter that nobody knows", "UNKNOWN_METER", |apdu| {
            if let Some(last_of_title) = apdu.get_mut(9) {
                *last_of_title ^= 0xFF;
            }
        }),
        forge("lgz-defaultkeys", "downgraded to encryption only", "POLICY_REFUSED", |apdu| {
            let at = security_control_at(apdu);
            if let Some(control) = apdu.get_mut(at) {
                *control &= !0x10;
            }
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Where the security control byte of a general-glo-ciphering APDU is: tag, 8 bytes of title with
/// their length, the content's length in BER.
fn security_control_at(apdu: &[u8]) -> usize {
    match apdu.get(10) {
        Some(0x81) => 12,
        Some(0x82) => 13,
        _ => 11,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors::published;

    fn line(meters: &[MeterLine], title: &str) -> MeterLine {
        meters.iter().find(|meter| meter.system_title == title).unwrap().clone()
    }

    #[test]
    fn a_clients_title_is_not_taken_for_a_meter() {
        let meters = meters(&published().unwrap());
        assert!(meters.iter().all(|meter| meter.system_title != "0000000000000000"));
        let kaifa = line(&meters, "4B464D6410000002");
        assert_eq!(kaifa.meter_id, "KFM-6410000002");
        assert_eq!(kaifa.policy.client_title.as_deref(), Some("0000000000000000"));
        let gosem = line(&meters, "4C475A2022604828");
        assert_eq!(gosem.policy.client_title.as_deref(), Some("4349520000000001"));
        assert!(gosem.keys.iter().any(|key| key.kind == "DEDICATED"));
    }

    #[test]
    fn only_the_meters_that_need_it_may_send_without_a_tag() {
        let meters = meters(&published().unwrap());
        let allowed = |line: &&MeterLine| line.policy.allow_encryption_only;
        let mut titles: Vec<String> =
            meters.iter().filter(allowed).map(|meter| meter.system_title.clone()).collect();
        titles.sort();
        let needed =
            ["4B464D1010000023", "4B464D6750000009", "4C475A6773745DDD", "4D4D4D0000BC614E"];
        assert_eq!(titles, needed);
        let withheld: Vec<&MeterLine> =
            meters.iter().filter(|meter| meter.policy.allow_withheld_authentication_key).collect();
        assert_eq!(withheld.len(), 1);
        assert_eq!(withheld[0].system_title, "4C475A677362F13A");
        assert!(withheld[0].keys.iter().all(|key| key.kind == "GUEK"));
    }

    #[test]
    fn the_wrong_key_of_a_meter_does_not_stand_beside_its_right_one() {
        let kamstrup = line(&meters(&published().unwrap()), "4B414D4501349083");
        let of_setup = |setup| kamstrup.keys.iter().filter(move |key| key.security_setup == setup);
        assert_eq!((of_setup(0).count(), of_setup(1).count()), (2, 2));
    }

    #[test]
    fn a_telegram_without_a_title_names_its_meter() {
        for telegram in telegrams(&published().unwrap()) {
            let tag = byte_at(&telegram.request.apdu, 0);
            assert_eq!(telegram.request.meter.is_none(), carries_title(tag), "{}", telegram.id);
        }
    }

    #[test]
    fn the_forgeries_differ_from_what_was_published_in_one_byte() {
        let published = telegrams(&published().unwrap());
        let forged = forgeries(&published);
        assert_eq!(forged.len(), 3);
        for forgery in forged {
            let original = published.iter().find(|telegram| telegram.id == forgery.id).unwrap();
            let bytes = |telegram: &Telegram| hex::decode(&telegram.request.apdu).unwrap();
            let (was, is) = (bytes(original), bytes(&forgery));
            let changed = was.iter().zip(&is).filter(|(was, is)| was != is).count();
            assert_eq!((changed, was.len()), (1, is.len()), "{}", forgery.fault);
            assert!(!forgery.verdict.starts_with("OK"));
        }
    }

    #[test]
    fn the_downgrade_forgery_starts_from_an_authenticated_and_encrypted_apdu() {
        let published = telegrams(&published().unwrap());
        let original = published.iter().find(|telegram| telegram.id == "lgz-defaultkeys").unwrap();
        let apdu = hex::decode(&original.request.apdu).unwrap();
        assert_eq!(apdu[security_control_at(&apdu)], 0x30);
    }
}
