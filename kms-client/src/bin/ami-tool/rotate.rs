//! `rotate start | list | status | members | watch | pause | resume | cancel | meter`.

use futures_util::StreamExt as _;
use kms_client::{Campaign, KmsClient, MembersOf};

use crate::asking::confirmed;
use crate::failure::{Exit, Failure};
use crate::rotate_args::{Because, Cancel, Members, OfMeter, Resume, RotateCommand};
use crate::rotate_meter::stands;
use crate::rotate_start::start;
use crate::rotate_text::{campaign, line, member, summary};
use crate::rotate_watch::watch;
use crate::text::{say, say_json};

pub(crate) async fn run(
    client: &KmsClient,
    command: RotateCommand,
    json: bool,
) -> Result<Exit, Failure> {
    match command {
        RotateCommand::Start(what) => start(client, *what, json).await,
        RotateCommand::List => list(client, json).await,
        RotateCommand::Status(what) => {
            let shown = client.rotation().campaign(&what.name).await?;
            if json {
                say_json(&shown)?
            } else {
                say(&campaign(&shown))?
            }
            Ok(Exit::Good)
        }
        RotateCommand::Members(what) => members(client, what, json).await,
        RotateCommand::Watch(what) => watch(client, what, json).await,
        RotateCommand::Pause(Because { name, reason }) => {
            decided(&client.rotation().pause_campaign(&name, &reason).await?, json)
        }
        RotateCommand::Resume(Resume { name, retry_failed }) => {
            decided(&client.rotation().resume_campaign(&name, retry_failed).await?, json)
        }
        RotateCommand::Cancel(what) => cancel(client, what, json).await,
        RotateCommand::Meter(what) => meter(client, what, json).await,
    }
}

fn decided(shown: &Campaign, json: bool) -> Result<Exit, Failure> {
    if json {
        say_json(shown)?
    } else {
        say(&summary(shown))?
    }
    Ok(Exit::Good)
}

async fn list(client: &KmsClient, json: bool) -> Result<Exit, Failure> {
    let all = client.rotation().campaigns().await?;
    if all.is_empty() && !json {
        say("no campaign is remembered; `rotate start` begins one")?;
    }
    for shown in &all {
        if json { say_json(shown)? } else { say(&line(shown))? }
    }
    Ok(Exit::Good)
}

async fn members(client: &KmsClient, what: Members, json: bool) -> Result<Exit, Failure> {
    let Members { name, state, exposed, limit } = what;
    let state = state.map(|state| state.wanted());
    let mut all = client.rotation().campaign_members(MembersOf { name, state, exposed, limit });
    while let Some(one) = all.next().await {
        let one = one?;
        if json { say_json(&one)? } else { say(&member(&one))? }
    }
    Ok(Exit::Good)
}

async fn cancel(client: &KmsClient, what: Cancel, json: bool) -> Result<Exit, Failure> {
    let Cancel { because: Because { name, reason }, yes } = what;
    if !yes {
        let now = client.rotation().campaign(&name).await?;
        let exposed = now.progress.exposed;
        let question = format!(
            "{}; nobody goes on with it then, and {exposed} meters that may hold a new key are left to themselves. Type {name} \
             to end it: ",
            line(&now)
        );
        if !confirmed(&name, &question)? {
            return Err(Failure::refused("NOT_CONFIRMED", "nothing was changed"));
        }
    }
    decided(&client.rotation().cancel_campaign(&name, &reason).await?, json)
}

async fn meter(client: &KmsClient, what: OfMeter, json: bool) -> Result<Exit, Failure> {
    let rotation = client.rotation().meter_rotation(&what.meter_id).await?;
    if json {
        say_json(&rotation)?
    } else {
        say(&stands(&what.meter_id, &rotation))?
    }
    Ok(Exit::Good)
}
