//! `meter create | get | list | delete | readmit | set-policy | bury`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use futures_util::StreamExt as _;
use kms_client::{
    CallError, DamagedMeter, ImportRules, KmsClient, LINE_LEN_MAX, Listed, Meter, MeterName,
    MeterPolicy, NewMeter, TextReader, title_text,
};
use kms_core::date::date;
use serde_json::json;
use zeroize::Zeroizing;

use crate::args::{Create, Delete, Get, List, MeterCommand, SetPolicy};
use crate::asking::confirmed;
use crate::burying_args::{Bury, Readmit};
use crate::failure::{Exit, Failure};
use crate::import;
use crate::key_text;
use crate::text::{block, say, say_json, say_unreplicated};

pub(crate) async fn run(
    client: &KmsClient,
    command: MeterCommand,
    json: bool,
) -> Result<Exit, Failure> {
    match command {
        MeterCommand::Create(what) => create(client, what, json).await,
        MeterCommand::Get(what) => get(client, what, json).await,
        MeterCommand::List(what) => list(client, what, json).await,
        MeterCommand::Delete(what) => delete(client, what, json).await,
        MeterCommand::Bury(what) => bury(client, what, json).await,
        MeterCommand::Readmit(what) => readmit(client, what, json).await,
        MeterCommand::SetPolicy(what) => set_policy(client, what, json).await,
        MeterCommand::DeclareCounter(what) => {
            crate::encrypt::declare_counter(client, what, json).await
        }
        MeterCommand::Import(what) => import::run(client, what, json).await,
        MeterCommand::Seal(what) => crate::seal::run(what, json),
        MeterCommand::CheckKeys(what) => crate::check_keys::run(what, json),
    }
}

async fn create(client: &KmsClient, what: Create, json: bool) -> Result<Exit, Failure> {
    let Create { from, profile, allow_test_keys } = what;
    let mut meter = NewMeter::from_json(&read_wiped(&from)?)
        .map_err(|bad| Failure::refused(bad.code, format!("{}: {bad}", from.display())))?;
    if let Some(name) = profile {
        let policy = meter.policy.get_or_insert_default();
        if let Some(other) =
            policy.profile.replace(name).filter(|old| Some(old) != policy.profile.as_ref())
        {
            return Err(Failure::usage(format!(
                "{} names the profile {other}: leave --profile out, or change the file",
                from.display()
            )));
        }
    }
    let rules = ImportRules { allow_test_keys, ..ImportRules::default() };
    let created = client.meters().create(meter, rules).await?;
    if json {
        say_json(&json!({
            "meter": created.meter, "warnings": created.warnings, "replicated": created.replicated
        }))?;
    } else {
        say(&described(&created.meter))?;
        say_unreplicated(created.replicated)?;
        for warning in &created.warnings {
            say(&format!("warning: {warning}"))?;
        }
    }
    Ok(Exit::Good)
}

/// Reads a file that holds keys into one buffer, which is wiped.
fn read_wiped(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: io::Error| Failure::files(format!("reading {}: {error}", path.display()));
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(failed)?)
    };
    // Never grown: a larger vector would leave the smaller one's bytes behind.
    let mut text = Zeroizing::new(Vec::with_capacity(LINE_LEN_MAX + 64));
    TextReader::new(source).take(LINE_LEN_MAX as u64 + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() > LINE_LEN_MAX {
        let path = path.display();
        return Err(Failure::files(format!(
            "{path} is longer than one meter's {LINE_LEN_MAX} bytes"
        )));
    }
    Ok(text)
}

async fn get(client: &KmsClient, what: Get, json: bool) -> Result<Exit, Failure> {
    let name = match what {
        Get { meter_id: Some(id), .. } => MeterName::Id(id),
        Get { system_title: Some(title), .. } => MeterName::Title(title),
        Get { .. } => {
            return Err(Failure::usage("name the meter: its ID, or --system-title HEX"));
        }
    };
    let meter = client.meters().get(&name).await?;
    if json {
        say_json(&meter)?
    } else {
        say(&described(&meter))?
    }
    Ok(Exit::Good)
}

async fn list(client: &KmsClient, what: List, json: bool) -> Result<Exit, Failure> {
    let List { after, limit } = what;
    let mut meters = client.meters().list(after, limit);
    while let Some(listed) = meters.next().await {
        match listed? {
            Listed::Meter(meter) if json => say_json(&meter)?,
            Listed::Meter(meter) => {
                let title = title_text(&meter.system_title);
                let (keys, block) = (meter.keys.len(), meter.block);
                say(&format!("{:<32}  {title}  {keys:>3} keys  block {block:>4}", meter.meter_id))?;
            }
            Listed::Damaged(meter) if json => say_json(&json!({ "damaged": meter }))?,
            Listed::Damaged(meter) => {
                let DamagedMeter { meter_id, system_title, block, reason } = meter;
                say(&format!(
                    "{meter_id:<32}  {system_title}  DAMAGED   block {block:>4}  {reason}"
                ))?;
            }
        }
    }
    Ok(Exit::Good)
}

async fn bury(client: &KmsClient, what: Bury, json: bool) -> Result<Exit, Failure> {
    let Bury { system_title, block, yes } = what;
    let title = title_text(&system_title);
    let question = format!(
        "what is left of meter {title} will be gone, its keys included. Type its title to bury it: "
    );
    if !yes && !confirmed(&title, &question)? {
        return Err(Failure::refused("NOT_CONFIRMED", "nothing was buried"));
    }
    let (block, replicated) = client.meters().bury(&system_title, block).await?;
    if json {
        say_json(&json!({ "buried": title, "block": block, "replicated": replicated }))?;
    } else {
        say(&format!("meter {title} is buried in block {block}"))?;
        say_unreplicated(replicated)?;
    }
    Ok(Exit::Good)
}

async fn delete(client: &KmsClient, what: Delete, json: bool) -> Result<Exit, Failure> {
    let Delete { meter_id, yes } = what;
    let question = format!("{meter_id} and its keys will be gone. Type its id to delete it: ");
    if !yes && !confirmed(meter_id.as_str(), &question)? {
        return Err(Failure::refused("NOT_CONFIRMED", "nothing was deleted"));
    }
    let replicated = client.meters().delete(&meter_id).await?;
    if json {
        say_json(&json!({ "deleted": meter_id, "replicated": replicated }))?;
    } else {
        say(&format!("{meter_id} is deleted"))?;
        say_unreplicated(replicated)?;
    }
    Ok(Exit::Good)
}

async fn readmit(client: &KmsClient, what: Readmit, json: bool) -> Result<Exit, Failure> {
    let Readmit { meter_id, system_title } = what;
    let readmitted = client.meters().readmit(&meter_id, &system_title).await;
    let readmitted = readmitted.map_err(|error| {
        let is_unknown = matches!(error, CallError::NotFound { .. });
        let failure = Failure::from(error);
        if is_unknown { failure.with_next(FIND_DELETED) } else { failure }
    })?;
    if json {
        say_json(&json!({ "readmitted": meter_id, "meter": readmitted }))?;
    } else {
        say(&format!(
            "{meter_id} may come back: import a file that was sealed after {} (an older one is \
             refused; a line in clear, where `import.allow_clear` is on, has no date and counts as \
             new). {}",
            date(readmitted.deleted_ms),
            former_keys(readmitted.keys_known, readmitted.keys_that_may_come_back)
        ))?;
        say_unreplicated(readmitted.replicated)?;
    }
    Ok(Exit::Good)
}

/// A hint at where to look for a deleted meter.
const FIND_DELETED: &str = "`audit list` shows which id and system title a deleted meter had \
    (`Meters/DeleteMeter`); `meter list` shows no deleted one";

/// The former keys that a readmitted meter may have again, as a sentence.
fn former_keys(known: u32, may_come_back: u32) -> String {
    match (known, may_come_back) {
        (0, _) => "None of the keys that it had is known".to_owned(),
        (1, 1) => "The key that it had may come back".to_owned(),
        (known, 0) => format!("None of its {known} keys may come back: they were given up"),
        (known, may) if may >= known => format!("All {known} keys that it had may come back"),
        (known, may) => {
            format!("Of {known} keys that it had, {may} may come back; the others were given up")
        }
    }
}

async fn set_policy(client: &KmsClient, what: SetPolicy, json: bool) -> Result<Exit, Failure> {
    let SetPolicy { meter_id, from } = what;
    let policy: MeterPolicy = serde_json::from_slice(&read_wiped(&from)?).map_err(|error| {
        Failure::files(format!("{} is no policy in JSON: {error}", from.display()))
    })?;
    let (meter, replicated) = client.meters().set_policy(&meter_id, &policy).await?;
    if json {
        let mut said = json!(meter);
        said["replicated"] = json!(replicated);
        say_json(&said)?;
    } else {
        say(&described(&meter))?;
        say_unreplicated(replicated)?;
    }
    Ok(Exit::Good)
}

/// A meter for people.
fn described(meter: &Meter) -> String {
    let policy = &meter.policy;
    let yes = |yes| if yes { "yes" } else { "no" }.to_owned();
    let title = |title: &Option<_>| title.as_ref().map_or("-".into(), title_text);
    let minimum = policy.minimum_protection.map_or("AUTHENTICATED", |minimum| minimum.word());
    let mut text = block(&[
        ("meter", meter.meter_id.clone()),
        ("system title", title_text(&meter.system_title)),
        ("logical device name", meter.logical_device_name.clone()),
        ("block", meter.block.to_string()),
        ("created", date(meter.created_ms)),
        ("minimum protection", minimum.into()),
        ("encryption-only allowed", yes(policy.allow_encryption_only)),
        ("withheld AK allowed", yes(policy.allow_withheld_authentication_key)),
        ("default system title", title(&policy.default_system_title)),
        ("client title", title(&policy.client_title)),
        ("general-ciphering header omitted", yes(policy.general_ciphering_omit_header)),
        ("compromised keys' plaintext given", yes(policy.allow_compromised)),
        ("profile", policy.profile.as_ref().map_or("-".into(), ToString::to_string)),
    ]);
    for entry in &policy.client_titles {
        text.push_str(&format!(
            "\nclient title  setup {}  client {:<5}  {}",
            entry.security_setup,
            entry.client,
            title_text(&entry.system_title)
        ));
    }
    if let Some(since) = meter.legal_hold_ms {
        text.push_str(&format!("\nLEGAL HOLD since {}: nothing of it is destroyed", date(since)));
    }
    if !meter.keys.is_empty() {
        text.push('\n');
        text.push_str(&key_text::keys(&meter.keys));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_keys_are_given_up_where_there_are_no_others() {
        for (known, may, others) in [(0, 0, 0), (1, 1, 0), (2, 2, 0), (2, 0, 2), (3, 2, 1)] {
            let said = former_keys(known, may);
            assert_eq!(said.contains("given up"), others > 0, "{said}");
        }
        assert_eq!(former_keys(2, 2), "All 2 keys that it had may come back");
    }
}
