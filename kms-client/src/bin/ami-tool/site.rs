//! `site status | import-key | enrol`. The reports that `status --readiness` shows are another file's.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use kms_client::{
    FollowerStatus, KeyringStatus, KmsClient, ReadinessStatus, ReplicationStatus, SiteStanding,
    SiteStatus, SiteToken, StoreStatus, TokenStatus, WarmUp,
};
use kms_core::enrolment::{Fingerprint, request::SignedRequest};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::args::ImportKey;
use crate::failure::{Exit, Failure};
use crate::site_args::Enrol;
use crate::text::{block, say, say_json};

/// Shows each site. One that can't be asked is said to be so, and the others are shown.
pub(crate) async fn status(client: &KmsClient, json: bool) -> Result<Exit, Failure> {
    let names = client.site_names();
    let ask = |name: &String| {
        let at = client.at_site(name);
        async move { Some(at?.site_status().await) }
    };
    let answers = join_all(names.iter().map(ask)).await;
    let mut exit = Exit::Good;
    for (n, (name, answer)) in names.iter().zip(answers).enumerate() {
        if n > 0 && !json {
            say("")?;
        }
        match answer {
            Some(Ok(status)) if json => say_json(&status)?,
            Some(Ok(status)) => say(&block(&rows(&status)))?,
            Some(Err(error)) if names.len() == 1 => return Err(error.into()),
            Some(Err(error)) => {
                exit = Exit::Unreachable;
                let reason = error.to_string();
                if json {
                    say_json(&json!({ "site": name, "error": reason }))?;
                } else {
                    say(&block(&[("site", name.clone()), ("answer", format!("NONE: {reason}"))]))?;
                }
            }
            None => {}
        }
    }
    Ok(exit)
}

fn rows(status: &SiteStatus) -> [(&'static str, String); 15] {
    let single = if status.single_site { " (single site)" } else { "" };
    let faults = match status.faults.as_slice() {
        [] => "none known".to_owned(),
        faults => faults.join("\n        "),
    };
    [
        ("site", format!("{}{single}", status.site)),
        ("role", status.standing.as_ref().map_or_else(|| "-".to_owned(), standing)),
        ("peer", status.replication.as_ref().map_or_else(|| "-".to_owned(), peer)),
        ("followers", status.replication.as_ref().map_or_else(|| "-".to_owned(), followers)),
        ("domain", status.domain_id.clone()),
        ("version", status.version.clone()),
        ("epoch", status.epoch.to_string()),
        ("up for", format!("{} s", status.uptime_ms / 1_000)),
        ("warm-up", warm_up(&status.warm_up)),
        ("token", token(&status.token)),
        ("known tokens", tokens(&status.tokens)),
        ("store", store(&status.store)),
        ("keyring", keyring(&status.keyring)),
        ("device profiles", profiles(&status.keyring)),
        ("faults", faults),
    ]
}

/// A standing for people.
pub(crate) fn standing(standing: &SiteStanding) -> String {
    let writes = if standing.writes { "takes changes" } else { "takes NO changes" };
    format!("{} in epoch {}, {writes}", standing.role.word(), standing.epoch)
}

/// The other site, how far it is, and whether it could take over.
fn peer(replication: &ReplicationStatus) -> String {
    let heard = match replication.heard_ms {
        Some(ms) => format!("heard {:.1} s ago", ms as f64 / 1_000.0),
        None => "NOT heard of".to_owned(),
    };
    let mut text = format!("{}, {heard}", replication.peer);
    if let Some(readiness) = &replication.readiness {
        let ReadinessStatus { proved, unproved, failed, token, .. } = readiness;
        let all = proved + unproved + failed;
        let ready = if proved == &all { "READY" } else { "NOT ready" };
        text.push_str(&format!(", {ready}: {proved} of {all} blocks proved, {failed} failed"));
        if !token.is_empty() {
            text.push_str(&format!(", by its token {token}"));
        }
    }
    if !replication.colour.is_empty() {
        text.push_str(&format!(", readiness {}", replication.colour));
    }
    if !replication.differences.is_empty() {
        text.push_str(&format!(", DIFFERS in {}", replication.differences.join(", ")));
    }
    if let Some(following) = &replication.following {
        let connected =
            if following.connected { "followed" } else { "not followed by this server" };
        let (blocks, refused) = (following.blocks_adopted, following.refused_count);
        text.push_str(&format!(", {connected}, {blocks} blocks taken over, {refused} refused"));
    }
    text
}

/// Those who follow the server that answered, and by how much they are behind.
fn followers(replication: &ReplicationStatus) -> String {
    let told = |follower: &FollowerStatus| {
        let FollowerStatus { site, blocks_behind, changes_behind, behind_ms } = follower;
        match behind_ms {
            None => format!("{site} has all changes"),
            Some(ms) => format!(
                "{site} is BEHIND by {changes_behind} changes in {blocks_behind} blocks, for {:.1} s",
                *ms as f64 / 1_000.0
            ),
        }
    };
    let mut all: Vec<_> = replication.followers.iter().map(told).collect();
    if let Some(ms) = replication.unfollowed_ms {
        let (peer, s) = (&replication.peer, ms / 1_000);
        all.insert(0, format!("{peer} does NOT FOLLOW, for {s} s: the faults say why"));
    }
    match all.is_empty() {
        true => "none at the server that answered".to_owned(),
        false => all.join("; "),
    }
}

fn state(reachable: bool, fault: &str) -> String {
    match (reachable, fault) {
        (true, "") => "reachable".to_owned(),
        (true, fault) => format!("reachable, but: {fault}"),
        (false, fault) => format!("NOT reachable: {fault}"),
    }
}

fn warm_up(warm: &WarmUp) -> String {
    let warming = if warm.done { "done" } else { "under way" };
    format!(
        "{warming}: {} of {} blocks open, {} failed, {} ms",
        warm.blocks_open, warm.blocks_total, warm.blocks_failed, warm.elapsed_ms
    )
}

fn token(token: &TokenStatus) -> String {
    format!(
        "{} ({}), {}, {} calls, connection {}",
        token.label,
        token.model,
        state(token.reachable, &token.fault),
        token.calls,
        token.connection_epoch
    )
}

/// A line for each token whose signatures count.
fn tokens(tokens: &[SiteToken]) -> String {
    if tokens.is_empty() {
        return "not to be told now".to_owned();
    }
    let line = |token: &SiteToken| {
        let SiteToken { site, id, fingerprint, in_use } = token;
        let in_use = if *in_use { ", in use" } else { "" };
        format!("{site} {id}{in_use} (fingerprint {fingerprint})")
    };
    tokens.iter().map(line).collect::<Vec<_>>().join("\n        ")
}

fn store(store: &StoreStatus) -> String {
    let state = state(store.reachable, &store.fault);
    format!("{}, {state}, {} meters{}", store.kind, store.meters, following(store))
}

/// Their names, and the beginning of what two sites compare.
fn profiles(keyring: &KeyringStatus) -> String {
    if keyring.profiles.is_empty() {
        return "none".to_owned();
    }
    let digest = keyring.profiles_digest.get(..16).unwrap_or_default();
    format!("{} (digest {digest}…)", keyring.profiles.join(", "))
}

fn keyring(keyring: &KeyringStatus) -> String {
    let locked = if keyring.memory_locked { "locked" } else { "NOT locked" };
    let damaged = match keyring.damaged_records {
        0 => String::new(),
        damaged => format!(", {damaged} records DAMAGED"),
    };
    format!(
        "{} meters resident, {} of {} bytes, memory {locked}{damaged}",
        keyring.resident_meters, keyring.arena_bytes_used, keyring.arena_bytes_total
    )
}

/// The lag of the database behind its primary, and of the server behind other servers.
fn following(store: &StoreStatus) -> String {
    let mut text = String::new();
    if let Some(standby) = &store.standby {
        let lag = format!("{} bytes, {:.1} s behind", standby.lag_bytes, standby.lag_seconds);
        let receiving = if standby.receiving { "" } else { ", receiving NOTHING from its primary" };
        text.push_str(&format!("; STANDBY, takes no changes, {lag}{receiving}"));
    }
    if store.not_following_ms > 0 {
        let silence = store.not_following_ms / 1_000;
        text.push_str(&format!("; NOT following other servers' changes for {silence} s"));
    }
    text
}

/// Fetches the import key. That it is the site's is for people to find out, by its fingerprint.
pub(crate) async fn import_key(
    client: &KmsClient,
    what: ImportKey,
    json: bool,
) -> Result<Exit, Failure> {
    let key = client.meters().import_key().await?;
    let fingerprint = key.fingerprint().map_err(|error| Failure::files(error.to_string()))?;
    if let Some(wanted) = what.site.filter(|wanted| *wanted != key.site) {
        let sentence = format!(
            "the key is of the site {}, not of {wanted}: nothing was written; each site opens only what was sealed for \
             it, so ask {wanted} itself",
            key.site
        );
        return Err(Failure::refused("WRONG_SITE", sentence));
    }
    if let Some(out) = &what.out {
        let failed =
            |error: std::io::Error| Failure::files(format!("writing {}: {error}", out.display()));
        let text = serde_json::to_string(&key).map_err(|error| failed(error.into()))?;
        std::fs::write(out, text + "\n").map_err(failed)?;
    }
    if json {
        say_json(&json!({ "import_key": key, "fingerprint": fingerprint.to_string() }))?;
    } else {
        say(&block(&[
            ("site", key.site.clone()),
            ("domain", hex::encode(&key.domain_id)),
            ("OAEP", format!("{:?}", key.oaep_hash).to_uppercase()),
            ("fingerprint", fingerprint.to_string()),
        ]))?;
        say(&format!(
            "compare the fingerprint with the one that `kms-server init` printed at {}, not with this; what is sealed \
             for it, that site alone opens",
            key.site
        ))?;
    }
    Ok(Exit::Good)
}

/// Says on a terminal that work goes on, and for how long: one answer comes, at its end.
fn waiting(json: bool) -> ProgressBar {
    if json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}");
    let bar = ProgressBar::new_spinner()
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        .with_message("the site wraps the secret of each of its blocks for the other token");
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// Enrols the site that made a join request, and keeps the bundle for it.
pub(crate) async fn enrol(client: &KmsClient, what: Enrol, json: bool) -> Result<Exit, Failure> {
    let Enrol { request: path, fingerprint, out, replace } = what;
    let fingerprint: Fingerprint = fingerprint
        .concat()
        .parse()
        .map_err(|error| Failure::usage(format!("--fingerprint: {error}")))?;
    let unread = |why: String| Failure::files(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(&path).map_err(|error| unread(error.to_string()))?;
    let request = SignedRequest::from_file(&text).map_err(|error| unread(error.to_string()))?;
    // Looked at here, too: a request that is not the one is sent to nobody.
    if request.fingerprint() != fingerprint {
        let found = request.fingerprint();
        return Err(Failure::refused(
            "WRONG_FINGERPRINT",
            format!(
                "{} has the fingerprint {found}, not the one that was confirmed",
                path.display()
            ),
        ));
    }
    let bar = waiting(json);
    let bundle = client.enrol_peer(&request, fingerprint, replace).await;
    bar.finish_and_clear();
    let bundle = bundle?;
    let written = std::fs::write(&out, bundle.to_file());
    written.map_err(|error| Failure::files(format!("writing {}: {error}", out.display())))?;
    let sender = &bundle.enrolment.sender;
    let signing = hex::encode(Sha256::digest(sender.signing));
    let bundle_fingerprint = bundle.fingerprint().to_string();
    if json {
        say_json(&json!({
            "site": request.request.site,
            "bundle": out,
            "fingerprint": bundle_fingerprint,
            "signing_key": signing,
        }))?;
    } else {
        say(&block(&[
            ("enrolled", format!("{}, {}", request.request.site, request.request.what())),
            ("by", sender.site.clone()),
            ("bundle", out.display().to_string()),
            ("fingerprint", bundle_fingerprint),
            ("signing key", signing),
        ]))?;
        say(match request.request.same_site {
            true => {
                "with the second token in [hsm], at this site: `kms-server init --join --bundle`; its server has to stand still \
                     over SQLite"
            }
            false => {
                "take the file to the joining site, and read its fingerprint out to somebody there"
            }
        })?;
    }
    Ok(Exit::Good)
}
