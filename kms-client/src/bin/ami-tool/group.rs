//! `group create | show | list | add | remove | delete | rotate | finish | encrypt`.

use kms_client::{
    Broadcast as Sent, CipheringForm, Group, GroupMember, GroupRefusal, GroupRotated, GroupView,
    KeyKind, KmsClient, Verdict, title_text,
};
use kms_core::date::date;
use serde_json::json;

use crate::encrypt::{protected_json, protected_rows};
use crate::failure::{Exit, Failure};
use crate::group_args::{Add, Broadcast, Finish, GroupCommand, Named, Remove, Rotate};
use crate::hex_digits::parse_hex;
use crate::text::{block, say, say_json, say_unreplicated};

pub(crate) async fn run(
    client: &KmsClient,
    command: GroupCommand,
    json: bool,
) -> Result<Exit, Failure> {
    match command {
        GroupCommand::Create(what) => {
            let made = client.groups().create(&what.wanted()).await?;
            if json {
                say_json(&made)?;
                return Ok(Exit::Good);
            }
            say(&group_text(&made.group))?;
            say(&format!("next: `ami-tool group add {} ID …`", made.group.name))?;
            say_unreplicated(made.replicated)?;
            Ok(Exit::Good)
        }
        GroupCommand::Show(Named { name }) => show(client, &name, json).await,
        GroupCommand::List => list(client, json).await,
        GroupCommand::Add(what) => add(client, what, json).await,
        GroupCommand::Remove(what) => remove(client, what, json).await,
        GroupCommand::Delete(Named { name }) => {
            let replicated = client.groups().delete(&name).await?;
            if json {
                say_json(&json!({ "deleted": name, "replicated": replicated }))?;
                return Ok(Exit::Good);
            }
            say(&format!("group {name} is given up"))?;
            say_unreplicated(replicated)?;
            Ok(Exit::Good)
        }
        GroupCommand::Rotate(what) => rotate(client, what, json).await,
        GroupCommand::Finish(what) => finish(client, what, json).await,
        GroupCommand::Encrypt(what) => encrypt(client, what, json).await,
    }
}

fn group_text(group: &Group) -> String {
    let Group { name, security_setup, client, client_title, authenticated, members, .. } = group;
    let tag = match authenticated {
        true => "authenticated, with the GAK that all members share",
        false => "encrypted only",
    };
    let mut rows = vec![
        ("group", name.clone()),
        ("security setup", security_setup.to_string()),
        ("client", format!("{client}, title {}", title_text(client_title))),
        ("broadcasts", tag.to_owned()),
        ("members", members.to_string()),
    ];
    for value in &group.values {
        let what = format!("{} {}, since {}", value.kcv, value.stage.word(), date(value.since_ms));
        rows.push((if value.kind == KeyKind::Gak { "GAK" } else { "GBEK" }, what));
    }
    if let Some(since) = group.wants_gbek_since_ms {
        let since = date(since);
        rows.push(("wants", format!("another GBEK, since a member left that knows it ({since})")));
    }
    block(&rows)
}

async fn show(client: &KmsClient, name: &str, json: bool) -> Result<Exit, Failure> {
    let view = client.groups().get(name).await?;
    if json {
        say_json(&view)?;
        return Ok(Exit::Good);
    }
    let GroupView { group, members, complete } = view;
    say(&group_text(&group))?;
    for member in &members {
        say(&member_text(member))?;
    }
    if complete {
        say("all members have confirmed: `ami-tool group finish` ends the rotation")?;
    }
    Ok(Exit::Good)
}

fn member_text(member: &GroupMember) -> String {
    let GroupMember { meter_id, system_title, gbek, gak, gbek_version, .. } = member;
    let id = if meter_id.is_empty() { "(gone)" } else { meter_id };
    let gak = gak.map_or_else(String::new, |gak| format!(", GAK {}", gak.word()));
    let version = match gbek_version {
        0 => String::new(),
        version => format!(" (v{version})"),
    };
    format!("  {id}  {}  GBEK {}{version}{gak}", title_text(system_title), gbek.word())
}

async fn list(client: &KmsClient, json: bool) -> Result<Exit, Failure> {
    let groups = client.groups().list().await?;
    for group in &groups {
        if json {
            say_json(group)?;
        } else {
            let wants = match group.wants_gbek_since_ms {
                Some(_) => ", wants another GBEK",
                None => "",
            };
            say(&format!("{}  {} members{wants}", group.name, group.members))?;
        }
    }
    if groups.is_empty() && !json {
        say("there are no groups")?;
    }
    Ok(Exit::Good)
}

fn say_refused(refused: &[GroupRefusal]) -> Result<(), Failure> {
    for GroupRefusal { meter_id, code, reason } in refused {
        say(&format!("  {meter_id}: {code}: {reason}"))?;
    }
    Ok(())
}

async fn add(client: &KmsClient, what: Add, json: bool) -> Result<Exit, Failure> {
    let Add { named: Named { name }, meters, allow_unreplicated } = what;
    let added = client.groups().add(&name, &meters, allow_unreplicated).await?;
    let good = Exit::good_if(added.refused.is_empty());
    if json {
        say_json(&added)?;
        return Ok(good);
    }
    say(&format!("{} came in, the group's key is staged at {}", added.added, added.staged))?;
    say_refused(&added.refused)?;
    if added.staged > 0 {
        say(
            "next: `ami-tool key next-transfer ID GBEK` for each of these, and send what it prints",
        )?;
    }
    say_unreplicated(added.replicated)?;
    Ok(good)
}

async fn remove(client: &KmsClient, what: Remove, json: bool) -> Result<Exit, Failure> {
    let Remove { named: Named { name }, meters, system_title } = what;
    let removed = client.groups().remove(&name, &meters, &system_title).await?;
    let good = Exit::good_if(removed.refused.is_empty());
    if json {
        say_json(&removed)?;
        return Ok(good);
    }
    say(&format!("{} left", removed.removed))?;
    say_refused(&removed.refused)?;
    if removed.wants_gbek {
        say(&format!("next: they know the GBEK: `ami-tool group rotate {name}`"))?;
    }
    say_unreplicated(removed.replicated)?;
    Ok(good)
}

async fn rotate(client: &KmsClient, what: Rotate, json: bool) -> Result<Exit, Failure> {
    let (name, kind) = (what.key.named.name, what.key.kind);
    let mut all: Option<GroupRotated> = None;
    loop {
        let some = client.groups().rotate(&name, kind, what.allow_unreplicated).await?;
        // Members that are refused are asked for again each time: only the last answer says so.
        let goes_on = some.left > 0 && some.staged > 0;
        let before = all.take();
        all = Some(GroupRotated {
            already: before.as_ref().map_or(some.already, |before| before.already),
            staged: some.staged + before.as_ref().map_or(0, |before| before.staged),
            proved: some.proved && before.as_ref().is_none_or(|before| before.proved),
            reason: some.reason.clone().or(before.and_then(|before| before.reason)),
            ..some
        });
        if !goes_on {
            break;
        }
    }
    let Some(rotated) = all else { return Ok(Exit::Good) };
    let good = Exit::good_if(rotated.refused.is_empty());
    if json {
        say_json(&rotated)?;
        return Ok(good);
    }
    let how = if rotated.already { "goes on" } else { "begins" };
    say(&format!(
        "the rotation of the {kind} of group {name} {how}: {} is staged at {} members now",
        rotated.value.kcv, rotated.staged
    ))?;
    say_refused(&rotated.refused)?;
    if !rotated.proved {
        let why = rotated.reason.as_deref().unwrap_or("no reason was given");
        say(&format!("NOT proved by the other site ({why}): it is not handed out before"))?;
    }
    say(&format!(
        "next: `ami-tool key next-transfer ID {kind}` and `key confirm` for each member; `ami-tool group show {name}` says \
         how far they are, `group finish {name} {kind}` ends it"
    ))?;
    Ok(good)
}

async fn finish(client: &KmsClient, what: Finish, json: bool) -> Result<Exit, Failure> {
    let (name, kind) = (what.key.named.name, what.key.kind);
    let done = client.groups().finish(&name, kind, &what.left_out).await?;
    if json {
        say_json(&done)?;
        return Ok(Exit::Good);
    }
    say(&group_text(&done.group))?;
    if !what.left_out.is_empty() {
        say(&format!("{} members hear no broadcast until they confirm", what.left_out.len()))?;
    }
    say_unreplicated(done.replicated)?;
    Ok(Exit::Good)
}

async fn encrypt(client: &KmsClient, what: Broadcast, json: bool) -> Result<Exit, Failure> {
    let Broadcast { named: Named { name }, apdu, glo } = what;
    let bytes = parse_hex(&apdu).map_err(Failure::usage)?;
    let form = if glo { CipheringForm::Glo } else { CipheringForm::GeneralGlo };
    let sent = client.groups().broadcast(&name, bytes.into(), form).await?;
    let Sent { messages, not_reached, members } = &sent;
    let all_ok = messages.iter().all(|it| it.protected.verdict == Verdict::Ok);
    let good = Exit::good_if(all_ok && not_reached.is_empty() && !messages.is_empty());
    if json {
        let messages = messages.iter().map(|it| {
            let mut said = protected_json(&it.protected);
            said["gbek_kcv"] = json!(it.gbek_kcv);
            said["gak_kcv"] = json!(it.gak_kcv);
            said["reaches"] = json!(it.reaches);
            said["may_reach"] = json!(it.may_reach);
            said
        });
        let unreached = not_reached
            .iter()
            .map(|(title, reason)| json!({ "system_title": title_text(title), "reason": reason }));
        say_json(&json!({
            "messages": messages.collect::<Vec<_>>(),
            "not_reached": unreached.collect::<Vec<_>>(),
            "members": members,
        }))?;
        return Ok(good);
    }
    for message in messages {
        let mut rows = vec![
            ("GBEK", message.gbek_kcv.clone()),
            (
                "reaches",
                format!(
                    "{} of {members} members, and perhaps {} more",
                    message.reaches, message.may_reach
                ),
            ),
        ];
        rows.extend(protected_rows(&message.protected));
        say(&block(&rows))?;
    }
    for (title, reason) in not_reached {
        say(&format!("NOT reached: {}: {reason}", title_text(title)))?;
    }
    Ok(good)
}
