//! `key stage | next-transfer | confirm | rollback | revive | compromise | destroy | restore | hold`.

use kms_client::{
    CallError, KeyInfo, KeyPlace, KeyState, KmsClient, NextTransfer, StageOptions, StagedKey,
    StateReason, TransferResult, Verdict,
};
use kms_core::date::date;
use serde_json::json;

use crate::asking::confirmed;
use crate::encrypt::{protected_json, protected_rows};
use crate::failure::{Exit, Failure};
use crate::key_args::{Compromise, Confirm, Destroy, Hold, KeyCommand, Stage, Version};
use crate::key_text::way;
use crate::text::{block, say, say_json, say_unreplicated};

pub(crate) async fn run(
    client: &KmsClient,
    command: KeyCommand,
    json: bool,
) -> Result<Exit, Failure> {
    match command {
        KeyCommand::Stage(what) => stage(client, what, json).await,
        KeyCommand::NextTransfer(what) => {
            let (place, options) = (what.place.key(), what.options());
            let next = client.rotation().next_transfer(&place, options).await;
            let next = next.map_err(|error| lost(error, TRANSFER_LOST))?;
            show_transfer(&place, &next, json)?;
            Ok(Exit::good_if(next.protected.verdict == Verdict::Ok))
        }
        KeyCommand::Confirm(what) => confirm(client, what, json).await,
        KeyCommand::Rollback(which) => roll_back(client, which, json).await,
        KeyCommand::Revive(which) => revive(client, which, json).await,
        KeyCommand::Compromise(what) => compromise(client, what, json).await,
        KeyCommand::Destroy(what) => destroy(client, what, json).await,
        KeyCommand::Restore(which) => restore(client, which, json).await,
        KeyCommand::Hold(what) => hold(client, what, json).await,
    }
}

/// After the answer to a transfer was lost on its way to us.
const TRANSFER_LOST: &str = "run it again: the wrapped key is the same and the counter a new one, and nothing of this one \
    went to the meter";
/// After the answer to a revival was lost.
const REVIVAL_LOST: &str = "`meter get` shows whether the key goes on as a new version";

/// A call that may have been carried out, and what to do about it.
fn lost(error: CallError, next: &'static str) -> Failure {
    let is_unknown = matches!(error, CallError::OutcomeUnknown { .. });
    let failure = Failure::from(error);
    if is_unknown { failure.with_next(next) } else { failure }
}

/// A key as its commands name it.
fn named(place: &KeyPlace) -> String {
    let KeyPlace { meter_id, kind, security_setup } = place;
    match security_setup {
        0 => format!("{meter_id} {kind}"),
        setup => format!("{meter_id} {kind} --security-setup {setup}"),
    }
}

/// A version of it, in a sentence.
fn version_of(place: &KeyPlace, version: u32) -> String {
    let KeyPlace { meter_id, kind, security_setup } = place;
    format!("{kind} v{version} of {meter_id}, security setup {security_setup}")
}

async fn stage(client: &KmsClient, what: Stage, json: bool) -> Result<Exit, Failure> {
    let (place, options) = (what.place.key(), what.options());
    let staged = client.rotation().stage(&place, options).await?;
    if json {
        say_json(&staged)?;
    } else {
        say(&staged_text(&place, options, &staged))?;
    }
    Ok(Exit::Good)
}

fn staged_text(place: &KeyPlace, options: StageOptions, staged: &StagedKey) -> String {
    let StagedKey { key, already, proved, reason } = staged;
    let before = if *already { ", which was staged before" } else { "" };
    let mut rows = vec![
        ("key", format!("{}{before}", version_of(place, key.version))),
        ("state", key.state.to_string()),
        ("KCV", key.kcv.clone()),
    ];
    if let Some(transfer) = &key.transfer {
        // The KEK is none of the keys that came with the answer: `meter get` has them all.
        let way = way(transfer, &[]).replace("under a KEK that is gone", "under the meter's KEK");
        rows.push(("way", way));
    }
    let why = reason.as_deref().unwrap_or("no reason was given");
    rows.push((
        "at the other site",
        match proved {
            true => "proved, or there is none".to_owned(),
            false => {
                format!("NOT proved ({why}): if this site is lost once it is sent, so is the meter")
            }
        },
    ));
    if differs(options, staged) {
        let said = "it stays as it was asked for then, until it is proved, or destroyed";
        rows.push(("note", said.to_owned()));
    }
    let next =
        format!("`ami-tool key next-transfer {}`, and send what it prints at once", named(place));
    rows.push(("next", next));
    block(&rows)
}

/// Whether a key that was staged before travels otherwise than was asked for now.
fn differs(options: StageOptions, staged: &StagedKey) -> bool {
    let Some(transfer) = staged.key.transfer.as_ref().filter(|_| staged.already) else {
        return false;
    };
    let carrier = options.carrier.is_some_and(|asked| {
        let asked = (u32::from(asked.security_setup), u32::from(asked.client), asked.form);
        asked != (transfer.carrier_setup, transfer.carrier_client, transfer.form)
    });
    let protection = options.protection.is_some_and(|asked| asked != staged.key.protection);
    carrier || protection || u32::from(options.class_version) != transfer.class_version
}

fn show_transfer(place: &KeyPlace, next: &NextTransfer, json: bool) -> Result<(), Failure> {
    let NextTransfer { protected, version } = next;
    if json {
        let mut said = protected_json(protected);
        said["version"] = json!(version);
        return say_json(&said);
    }
    let mut rows = protected_rows(protected);
    rows.insert(0, ("brings", version_of(place, *version)));
    if protected.verdict == Verdict::Ok {
        let named = named(place);
        rows.push(("next", format!(
            "send it, `ami-tool decrypt` what the meter answers, then `ami-tool key confirm {named} --result \
             success|refused|no-answer`"
        )));
    }
    say(&block(&rows))
}

async fn confirm(client: &KmsClient, what: Confirm, json: bool) -> Result<Exit, Failure> {
    let (place, result) = (what.place.key(), what.result.result());
    let confirmed = client.rotation().confirm(&place, result).await?;
    if json {
        say_json(&confirmed)?;
        return Ok(Exit::Good);
    }
    let key = &confirmed.key;
    say(&block(&[
        ("key", version_of(&place, key.version)),
        ("state", format!("{}, {}", key.state, key.reason)),
        ("answer", result.to_string()),
        ("next", after_answer(key, result).to_owned()),
    ]))?;
    say_unreplicated(confirmed.replicated)?;
    Ok(Exit::Good)
}

/// An answer proves nothing of most keys, whatever it says.
fn after_answer(key: &KeyInfo, result: TransferResult) -> &'static str {
    let weak = key.reason == StateReason::ConfirmedByResult;
    match (key.state, result) {
        (KeyState::Active, _) if weak => {
            "nothing but this answer will show it: the former version stays usable, `key rollback` prefers it again"
        }
        (KeyState::PreActive, TransferResult::Success) => {
            "nothing is proved by that: have what the meter sends from now on opened (`decrypt`). The first message under the \
             new key makes it ACTIVE and preferred; `meter get` shows it"
        }
        (KeyState::PreActive, TransferResult::Refused) => {
            "the meter may hold it all the same: look under which version its next message opens (`decrypt`). Under the \
             former one, `key next-transfer` sends the same key again"
        }
        (KeyState::PreActive, TransferResult::NoAnswer) => {
            "the meter may hold it or not: `key next-transfer` sends the same key again, or wait for its next message \
             (`decrypt`), which says so"
        }
        _ => "`meter get` shows its keys",
    }
}

async fn roll_back(client: &KmsClient, which: Version, json: bool) -> Result<Exit, Failure> {
    let place = which.place.key();
    let changed = client.rotation().roll_back(&place, which.version).await?;
    if json {
        say_json(&changed)?;
        return Ok(Exit::Good);
    }
    let key = version_of(&place, which.version.into());
    say(&match changed.changed {
        true => format!("{key} is preferred: what is sent is protected by it"),
        false => format!("{key} was preferred already"),
    })?;
    say_unreplicated(changed.replicated)?;
    Ok(Exit::Good)
}

async fn revive(client: &KmsClient, which: Version, json: bool) -> Result<Exit, Failure> {
    let place = which.place.key();
    let revived = client.rotation().revive(&place, which.version).await;
    let revived = revived.map_err(|error| lost(error, REVIVAL_LOST))?;
    if json {
        say_json(&revived)?;
        return Ok(Exit::Good);
    }
    let (former, key) = (which.version, version_of(&place, revived.version));
    say(&format!(
        "v{former} goes on as {key}, which is preferred: its counters go on where they were"
    ))?;
    say_unreplicated(revived.replicated)?;
    Ok(Exit::Good)
}

async fn compromise(client: &KmsClient, what: Compromise, json: bool) -> Result<Exit, Failure> {
    let Compromise { which: Version { place, version }, yes } = what;
    let place = place.key();
    let key = version_of(&place, version.into());
    let question = format!(
        "{key} will protect nothing any more, and what opens under it counts for nothing; that is never taken back. Type the \
         meter's id to go on: "
    );
    if !yes && !confirmed(place.meter_id.as_str(), &question)? {
        return Err(Failure::refused("NOT_CONFIRMED", "nothing was changed"));
    }
    let done = client.rotation().compromise(&place, version).await?;
    if json {
        say_json(&done)?;
        return Ok(Exit::Good);
    }
    say(&match done.state {
        KeyState::Destroyed => format!("{key} is wiped: its successor is proved already"),
        state => format!(
            "{key} is {state}. It still carries the transfer of its successor, and is wiped once the meter shows that one\n\
             next: `ami-tool key stage {}`, unless one is staged already",
            named(&place)
        ),
    })?;
    say_unreplicated(done.replicated)?;
    Ok(Exit::Good)
}

async fn destroy(client: &KmsClient, what: Destroy, json: bool) -> Result<Exit, Failure> {
    let Destroy { which: Version { place, version }, last_way, yes } = what;
    let place = place.key();
    let key = version_of(&place, version.into());
    let question = format!(
        "without {key} nobody may reach the meter again, short of going there. Type the meter's id to have it destroyed: "
    );
    if last_way && !yes && !confirmed(place.meter_id.as_str(), &question)? {
        return Err(Failure::refused("NOT_CONFIRMED", "nothing will be destroyed"));
    }
    let condemned = client.rotation().destroy(&place, version, last_way).await?;
    if json {
        say_json(&condemned)?;
        return Ok(Exit::Good);
    }
    say(&format!(
        "{key} will be destroyed at {}\nnext: until then `ami-tool key restore {} {version}` takes it back",
        date(condemned.destroy_at_ms),
        named(&place)
    ))?;
    say_unreplicated(condemned.replicated)?;
    Ok(Exit::Good)
}

async fn restore(client: &KmsClient, which: Version, json: bool) -> Result<Exit, Failure> {
    let place = which.place.key();
    let changed = client.rotation().restore(&place, which.version).await?;
    if json {
        say_json(&changed)?;
        return Ok(Exit::Good);
    }
    let key = version_of(&place, which.version.into());
    say(&match changed.changed {
        true => format!("{key} will not be destroyed"),
        false => format!("{key} was not to be destroyed"),
    })?;
    say_unreplicated(changed.replicated)?;
    Ok(Exit::Good)
}

async fn hold(client: &KmsClient, what: Hold, json: bool) -> Result<Exit, Failure> {
    let Hold { meter_id, lift } = what;
    let changed = client.rotation().set_legal_hold(&meter_id, !lift).await?;
    if json {
        say_json(&changed)?;
        return Ok(Exit::Good);
    }
    let already = if changed.changed { "" } else { " already" };
    say(&match lift {
        false => format!(
            "{meter_id} is under a legal hold{already}: nothing of it is destroyed until it is lifted"
        ),
        true => format!(
            "{meter_id} is under no legal hold{already}: what was due meanwhile is destroyed within a minute"
        ),
    })?;
    say_unreplicated(changed.replicated)?;
    Ok(Exit::Good)
}
