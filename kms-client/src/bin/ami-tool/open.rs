//! `decrypt` and `verify`.

use kms_client::KmsClient;

use crate::failure::{Exit, Failure};
use crate::item_args::Items;
use crate::items::{one, show};
use crate::lines;

pub(crate) async fn decrypt(client: &KmsClient, what: Items, json: bool) -> Result<Exit, Failure> {
    if what.reads_lines() {
        return lines::answer(what, |apdus| client.decrypt_stream(apdus)).await;
    }
    let telegram = one(&what)?;
    show(&telegram, &client.decrypt(&telegram.apdu).await?, json)
}

pub(crate) async fn verify(client: &KmsClient, what: Items, json: bool) -> Result<Exit, Failure> {
    if what.reads_lines() {
        return lines::answer(what, |apdus| client.verify_mic_stream(apdus)).await;
    }
    let telegram = one(&what)?;
    show(&telegram, &client.verify_mic(&telegram.apdu).await?, json)
}
