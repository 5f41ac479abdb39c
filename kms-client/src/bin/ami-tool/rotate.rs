//! `rotate start | list | status | members | watch | pause | resume | cancel | meter`.

use futures_util::StreamExt as _;
use kms_client::{Campaign, KmsClient};

use crate::asking::confirmed;
use crate::failure::{Exit, Failure};
use crate::rotate_args::{Because, Cancel, Members, Named, OfMeter, Resume, RotateCommand};
use crate::rotate_meter::stands;
use crate::rotate_start::start;
use crate::rotate_text::{campaign, line, member, summary};
use crate::rotate_watch::watch;
use crate::text::{say, show};

pub(crate) async fn run(
    client: &KmsClient,
    command: RotateCommand,
    json: bool,
) -> Result<Exit, Failure> {
    match command {
        RotateCommand::Start(what) => start(client, *what, json).await,
        RotateCommand::List => list(client, json).await,
        RotateCommand::Status(what) => status(client, what, json).await,
        RotateCommand::Members(what) => members(client, what, json).await,
        RotateCommand::Watch(what) => watch(client, what, json).await,
        RotateCommand::Pause(what) => pause(client, what, json).await,
        RotateCommand::Resume(what) => resume(client, what, json).await,
        RotateCommand::Cancel(what) => cancel(client, what, json).await,
        RotateCommand::Meter(what) => meter(client, what, json).await,
    }
}

async fn list(client: &KmsClient, json: bool) -> Result<Exit, Failure> {
    let all = client.rotation().campaigns().await?;
    if all.is_empty() && !json {
        say("no campaign is remembered; `rotate start` begins one")?;
    }
    all.iter().try_for_each(|shown| show(json, shown, || line(shown)))?;
    Ok(Exit::Good)
}

async fn status(client: &KmsClient, what: Named, json: bool) -> Result<Exit, Failure> {
    let shown = client.rotation().campaign(&what.name).await?;
    show(json, &shown, || campaign(&shown))?;
    Ok(Exit::Good)
}

async fn members(client: &KmsClient, what: Members, json: bool) -> Result<Exit, Failure> {
    let mut all = client.rotation().campaign_members(what.wanted());
    while let Some(one) = all.next().await.transpose()? {
        show(json, &one, || member(&one))?;
    }
    Ok(Exit::Good)
}

async fn pause(client: &KmsClient, what: Because, json: bool) -> Result<Exit, Failure> {
    let Because { name, reason } = what;
    decided(&client.rotation().pause_campaign(&name, &reason).await?, json)
}

async fn resume(client: &KmsClient, what: Resume, json: bool) -> Result<Exit, Failure> {
    let Resume { name, retry_failed } = what;
    decided(&client.rotation().resume_campaign(&name, retry_failed).await?, json)
}

async fn cancel(client: &KmsClient, what: Cancel, json: bool) -> Result<Exit, Failure> {
    let Cancel { because: Because { name, reason }, yes } = what;
    if !yes && !agreed(&client.rotation().campaign(&name).await?)? {
        return Err(Failure::refused("NOT_CONFIRMED", "nothing was changed"));
    }
    decided(&client.rotation().cancel_campaign(&name, &reason).await?, json)
}

/// Whether somebody means to end it as it stands.
fn agreed(now: &Campaign) -> Result<bool, Failure> {
    let (name, exposed) = (&now.name, now.progress.exposed);
    let left = format!("{exposed} meters that may hold a new key are left to themselves");
    let question =
        format!("{}. Nobody goes on with it then; {left}. Type {name} to end it: ", line(now));
    confirmed(name, &question)
}

fn decided(shown: &Campaign, json: bool) -> Result<Exit, Failure> {
    show(json, shown, || summary(shown))?;
    Ok(Exit::Good)
}

async fn meter(client: &KmsClient, what: OfMeter, json: bool) -> Result<Exit, Failure> {
    let rotation = client.rotation().meter_rotation(&what.meter_id).await?;
    show(json, &rotation, || stands(&what.meter_id, &rotation))?;
    Ok(Exit::Good)
}
