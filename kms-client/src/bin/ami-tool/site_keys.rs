//! `site rotate-secrets`, `site rotate-kek`, `site destroy-kek`: the service's own keys.

use kms_client::{BlockSecretRotation, KmsClient, SiteKekRotation};
use kms_core::date::date;

use crate::failure::{Exit, Failure};
use crate::roles::{agreed, meant};
use crate::site_args::{DestroyKek, KekName, RotateKek, RotateSecrets};
use crate::text::{block, say, say_json};

/// Has block secrets rotated, or says how far that is.
pub(crate) async fn rotate_secrets(
    client: &KmsClient,
    what: RotateSecrets,
    json: bool,
) -> Result<Exit, Failure> {
    let (client, _) = meant(client, what.name.as_ref())?;
    let rotation = match what.status {
        true => client.block_secret_rotation().await?,
        false => client.rotate_block_secrets().await?,
    };
    if json {
        say_json(&rotation)?;
    } else {
        say(&block(&rows(&rotation)))?;
        for waits in &rotation.waiting {
            say(&format!("block {} waits: {}", waits.block, waits.reason))?;
        }
        if !what.status && !rotation.is_over() {
            say("it goes on by itself; see how far it is with `site rotate-secrets --status`")?;
        }
    }
    // Who asks for it has it begun; who looks wants to know whether it is over.
    Ok(Exit::good_if(!what.status || rotation.generation == 0 || rotation.is_over()))
}

fn rows(rotation: &BlockSecretRotation) -> [(&'static str, String); 4] {
    let BlockSecretRotation { generation, asked_ms, blocks, staged, rewritten, retired, .. } =
        rotation;
    let number = match generation {
        0 => "there was none".to_owned(),
        _ => format!("{generation}, asked for {}", date(*asked_ms)),
    };
    [
        ("rotation", number),
        ("new secret made", format!("{} of {blocks} blocks", staged + rewritten + retired)),
        ("in use", format!("{} of {blocks} blocks", rewritten + retired)),
        ("former one retired", format!("{retired} of {blocks} blocks")),
    ]
}

/// Has a new site KEK made and used, or says how far that is.
pub(crate) async fn rotate_kek(
    client: &KmsClient,
    what: RotateKek,
    json: bool,
) -> Result<Exit, Failure> {
    let (client, _) = meant(client, what.name.as_ref())?;
    let rotation = match what.status {
        true => client.site_kek_rotation().await?,
        false => client.rotate_site_kek().await?,
    };
    show(&rotation, json)?;
    if !json && !what.status && !rotation.is_over() {
        say("it goes on by itself; see how far it is with `site rotate-kek --status`")?;
    }
    Ok(Exit::good_if(!what.status || rotation.is_over()))
}

/// Has former site KEKs destroyed.
pub(crate) async fn destroy_kek(
    client: &KmsClient,
    what: DestroyKek,
    json: bool,
) -> Result<Exit, Failure> {
    let (client, name) = meant(client, what.name.as_ref())?;
    let KekName(id) = what.id;
    let question = format!(
        "Former site KEK {} of {name} will be DESTROYED. Backups that were made before its rotation open with nothing else: \
         has a newer one been made, and drilled (`kms-server backup --drill`)?",
        hex::encode(id)
    );
    agreed(what.yes, &name, &question)?;
    show(&client.destroy_site_kek(&id).await?, json)?;
    Ok(Exit::Good)
}

fn show(rotation: &SiteKekRotation, json: bool) -> Result<(), Failure> {
    if json {
        return say_json(rotation);
    }
    say(&block(&rows_of_kek(rotation)))?;
    for waits in &rotation.waiting {
        say(&format!("block {} waits: {}", waits.block, waits.reason))?;
    }
    match rotation.fault.as_str() {
        "" => Ok(()),
        fault => say(&format!("it waits: {fault}")),
    }
}

fn rows_of_kek(rotation: &SiteKekRotation) -> Vec<(&'static str, String)> {
    let SiteKekRotation { generation, asked_ms, stage, in_use, blocks, .. } = rotation;
    if *generation == 0 {
        let none = "there was none".to_owned();
        return vec![("rotation", none), ("site KEK in use", in_use.clone())];
    }
    let mut rows = vec![
        ("rotation", format!("{generation}, asked for {}", date(*asked_ms))),
        ("stage", (*stage).to_owned()),
        ("site KEK in use", in_use.clone()),
        ("sealed under the new one", format!("{} of {blocks} blocks", rotation.blocks_sealed)),
    ];
    if !rotation.is_over() {
        let proved = format!("{} of {} seals", rotation.proved, rotation.seals);
        rows.push(("proved by it", proved));
    }
    let kept = |id: &String| ("former one, kept", id.clone());
    rows.extend(rotation.former.iter().map(kept));
    rows
}
