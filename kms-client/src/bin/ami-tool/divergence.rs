//! `site divergence list | show | accept | discard`, and `site admit-epoch`.

use kms_client::{
    CallError, Decision, DivergenceDecision, DivergenceResolved, DivergenceRow, DivergenceRule,
    DivergentKey, KmsClient, Replicated,
};
use kms_core::date::date;
use serde_json::json;

use crate::asking::confirmed;
use crate::divergence_args::{AdmitEpoch, Decide, DivergenceCommand, ForgetList, List};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::roles::at;
use crate::site::standing;
use crate::text::{UNREPLICATED, block, say, say_json};

pub(crate) async fn run(
    client: &KmsClient,
    command: DivergenceCommand,
    json: bool,
) -> Result<Exit, Failure> {
    match command {
        DivergenceCommand::List(List { decided }) => list(client, decided, json).await,
        DivergenceCommand::Show { id } => show(client, &id, json).await,
        DivergenceCommand::Accept(what) => decide(client, what, Decision::Accept, json).await,
        DivergenceCommand::Discard(what) => decide(client, what, Decision::Discard, json).await,
    }
}

/// Shows the rows of each site: what the one that writes was told of, and what lies at another one and can't be told.
async fn list(client: &KmsClient, decided: bool, json: bool) -> Result<Exit, Failure> {
    let (mut answered, mut last) = (false, None);
    for name in client.site_names() {
        match list_at(&at(client, &name)?, &name, (decided, json)).await? {
            Ok(()) => answered = true,
            Err(error) => {
                let reason = error.to_string();
                if json {
                    say_json(&json!({ "site": name, "error": reason }))?;
                } else {
                    say(&format!("site {name} does NOT answer: {reason}"))?;
                }
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) if !answered => Err(error.into()),
        Some(_) => Ok(Exit::Unreachable),
        None => Ok(Exit::Good),
    }
}

async fn list_at(
    client: &KmsClient,
    name: &str,
    (decided, json): (bool, bool),
) -> Result<Result<(), CallError>, Failure> {
    let (mut after, mut undecided, mut shown) = (None, 0, 0);
    loop {
        let page = match client.divergence(after, decided).await {
            Ok(page) => page,
            Err(error) => return Ok(Err(error)),
        };
        undecided = page.undecided.max(undecided);
        shown += page.rows.len();
        for row in &page.rows {
            if json {
                say_json(&Told { told_by: name, row })?;
            } else {
                say(&line(row))?;
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    if !json && shown == 0 {
        say(&format!("site {name}: nothing is set aside that waits for a decision"))?;
    } else if !json {
        say(&format!("site {name}: {undecided} wait for a decision"))?;
    }
    Ok(Ok(()))
}

/// A row, and the site that told it.
#[derive(serde::Serialize)]
struct Told<'a> {
    told_by: &'a str,
    #[serde(flatten)]
    row: &'a DivergenceRow,
}

/// The rows of this id at the first site that has any.
async fn rows_of(client: &KmsClient, id: &[u8]) -> Result<Vec<DivergenceRow>, Failure> {
    let mut last = None;
    for name in client.site_names() {
        match at(client, &name)?.divergence_of(id.to_vec()).await {
            Ok(rows) if !rows.is_empty() => return Ok(rows),
            Ok(_) => {}
            Err(error) => last = Some(error),
        }
    }
    last.map_or_else(|| Ok(Vec::new()), |error| Err(error.into()))
}

fn line(row: &DivergenceRow) -> String {
    let DivergenceRow { id, meter_id, system_title, parting, site, block, keys, .. } = row;
    let name = match (meter_id.as_str(), system_title.as_str()) {
        ("", "") => "-",
        ("", title) => title,
        (id, _) => id,
    };
    let decided = row.decided.as_ref().map_or("", |decided| decided.decision);
    format!("{id}  {parting:13}  block {block}  {name}  by {site}  {} keys  {decided}", keys.len())
        .trim_end()
        .to_owned()
}

async fn show(client: &KmsClient, id: &str, json: bool) -> Result<Exit, Failure> {
    let rows = rows_of(client, &bytes(id)?).await?;
    if rows.is_empty() {
        return Err(not_set_aside());
    }
    for row in &rows {
        if json {
            say_json(row)?;
            continue;
        }
        let decided = match &row.decided {
            None => "nothing yet".to_owned(),
            Some(it) => format!("{} by {} at {}", it.decision, it.by, date(it.at_ms)),
        };
        let mut lines = vec![
            ("id", row.id.clone()),
            ("meter", format!("{} {}", row.meter_id, row.system_title)),
            ("is", row.parting.to_owned()),
            ("block", format!("{} at epoch {}, change {}", row.block, row.epoch, row.sequence)),
            ("written by", row.site.clone()),
            ("set aside", date(row.set_aside_ms)),
            ("decided", decided),
        ];
        if row.other_policy {
            lines.push(("policy", "another one: stays what it is (`meter set-policy`)".to_owned()));
        }
        if row.other_names {
            lines.push(("names", "other ones: they stay what they are".to_owned()));
        }
        lines.extend(row.keys.iter().map(|key| ("key", key_text(key))));
        say(&block(&lines))?;
    }
    Ok(Exit::Good)
}

fn key_text(key: &DivergentKey) -> String {
    let DivergentKey { key_id, kind, security_setup, aside, stands } = key;
    let stands = stands.map_or("not there".to_owned(), |state| format!("stands {state}"));
    format!("{key_id}  {kind} of setup {security_setup}: {aside} here, {stands}")
}

async fn decide(
    client: &KmsClient,
    what: Decide,
    decision: Decision,
    json: bool,
) -> Result<Exit, Failure> {
    let Decide { id, rule, yes } = what;
    let rule = match (id, rule) {
        (Some(id), _) => DivergenceRule::One(bytes(&id)?),
        (None, Some(rule)) => rule,
        (None, None) => return Err(Failure::usage("name a record, or a rule")),
    };
    if !yes {
        agreed(client, &rule, decision).await?;
    }
    let mut all = DivergenceResolved::default();
    loop {
        let done = client.resolve_divergence(rule.clone(), decision).await?;
        all.decided += done.decided;
        all.changed += done.changed;
        if done.replicated != Replicated::NotApplicable {
            all.replicated = done.replicated;
        }
        // What was left comes again in each answer.
        all.left = done.left;
        if !done.more || done.decided == 0 {
            all.more = done.more;
            break;
        }
    }
    if let DivergenceRule::One(id) = &rule
        && all.decided == 0
        && all.left.is_empty()
    {
        return decided_before(client, id, decision, json).await;
    }
    if json {
        say_json(&json!({ "decision": decision.word(), "outcome": all }))?;
    } else {
        say(&format!("{} decided, {} records changed by it", all.decided, all.changed))?;
        for left in &all.left {
            say(&format!("{} NOT decided: {} ({})", left.id, left.reason, left.word))?;
        }
        if all.replicated == Replicated::Unreplicated {
            say(UNREPLICATED)?;
        }
    }
    Ok(Exit::good_if(all.left.is_empty() && !all.more))
}

/// Asks whoever sits at the terminal: a decision stays.
async fn agreed(
    client: &KmsClient,
    rule: &DivergenceRule,
    decision: Decision,
) -> Result<(), Failure> {
    let what = match rule {
        DivergenceRule::One(id) => match rows_of(client, id).await?.first() {
            Some(row) => format!("one record: {}", line(row)),
            None => return Err(not_set_aside()),
        },
        DivergenceRule::Parting(_) | DivergenceRule::All => "many records at once".to_owned(),
    };
    let word = decision.word().to_lowercase();
    if confirmed(&word, &format!("this is to {word} {what}. Type {word} to go on: "))? {
        return Ok(());
    }
    Err(Failure::usage("nothing was decided"))
}

fn not_set_aside() -> Failure {
    let what = "no record of this id was set aside: see `site divergence list`";
    Failure::refused("NOT_SET_ASIDE", what)
}

/// Nothing was decided about the one record: it is no such one, or somebody was here before. The same decision once more
/// is none, and no fault.
async fn decided_before(
    client: &KmsClient,
    id: &[u8],
    decision: Decision,
    json: bool,
) -> Result<Exit, Failure> {
    let rows = rows_of(client, id).await?;
    let row = rows.first().ok_or_else(not_set_aside)?;
    let Some(DivergenceDecision { decision: word, at_ms, by }) = &row.decided else {
        let reason = "nothing was decided about it: look with `site divergence show`";
        return Err(Failure::refused("NOT_DECIDED", reason));
    };
    let before = format!("{by} decided about it at {}: {word}. That stays", date(*at_ms));
    if *word != decision.word() {
        return Err(Failure::refused("DECIDED_ALREADY", before));
    }
    if json {
        let outcome = DivergenceResolved::default();
        say_json(&json!({ "decision": word, "outcome": outcome, "decided_before": row.decided }))?;
    } else {
        say(&before)?;
    }
    Ok(Exit::Good)
}

/// Has the site that `--site` names take in an epoch of the other one that is more than one step ahead.
pub(crate) async fn admit(
    client: &KmsClient,
    what: AdmitEpoch,
    json: bool,
) -> Result<Exit, Failure> {
    let AdmitEpoch { epoch } = what;
    let now = client.admit_epoch(epoch).await?;
    if json {
        say_json(&json!({ "admitted": epoch, "standing": now }))?;
    } else {
        say(&format!("the site is {}", standing(&now)))?;
    }
    Ok(Exit::Good)
}

/// Has the domain forget how new a revocation list was.
pub(crate) async fn forget_list(
    client: &KmsClient,
    what: ForgetList,
    json: bool,
) -> Result<Exit, Failure> {
    let ForgetList { authority, number, from } = what;
    let forgotten = client.forget_revocation_list(&authority, &number, &from).await?;
    let (resets, replicated) = forgotten;
    if json {
        say_json(&json!({ "resets": resets, "replicated": replicated }))?;
    } else {
        say("forgotten; each server takes the list that lies there at its next look")?;
        if replicated == Replicated::Unreplicated {
            say(&format!("changes are here and {UNREPLICATED}"))?;
        }
    }
    Ok(Exit::Good)
}

fn bytes(id: &str) -> Result<Vec<u8>, Failure> {
    hex::decode(id).map_err(|_| Failure::usage("an id is hexadecimal digits, as `list` shows it"))
}
