//! `site rotate-secrets`: new block secrets, and how far that is.

use kms_client::{BlockSecretRotation, KmsClient};
use kms_core::date::date;

use crate::failure::{Exit, Failure};
use crate::roles::meant;
use crate::site_args::RotateSecrets;
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
