//! `audit list`, `audit nodes`, `audit follow`, `audit verify`.

use std::path::Path;

use futures_util::StreamExt as _;
use kms_client::{AuditEvent, AuditOutcome, ChainReport, Expected, KmsClient, KnownHead};
use kms_core::date::date;
use serde_json::json;

use crate::args::{AuditCommand, AuditList, AuditVerify};
use crate::failure::{Exit, Failure};
use crate::text::{block, say, say_json};

pub(crate) async fn run(
    client: &KmsClient,
    command: AuditCommand,
    json: bool,
) -> Result<Exit, Failure> {
    match command {
        AuditCommand::List(list) => self::list(client, list, json).await,
        AuditCommand::Nodes { of } => nodes(client, &of, json).await,
        AuditCommand::Follow { node, after } => follow(client, (node, after), json).await,
        AuditCommand::Verify(what) => verify(client, what, json).await,
    }
}

async fn follow(
    client: &KmsClient,
    (node, after): (Option<[u8; 16]>, Option<u64>),
    json: bool,
) -> Result<Exit, Failure> {
    let (node, after) = match after {
        Some(after) => (node, after),
        None => {
            let (node, last) = client.audit().last(node).await?;
            (Some(node), last)
        }
    };
    let mut events = client.audit().follow(node, after);
    while let Some(event) = events.next().await {
        show(&event?, json)?;
    }
    Ok(Exit::Good)
}

async fn list(client: &KmsClient, list: AuditList, json: bool) -> Result<Exit, Failure> {
    let AuditList { of, node, after, last, limit } = list;
    let audit = client.audit().of_site(&of);
    let (node, after) = match last {
        Some(last) => {
            let (node, end) = audit.last(node).await?;
            (Some(node), end.saturating_sub(last))
        }
        None => (node, after),
    };
    // Our own look at the end stands behind it by now.
    let most = last.map_or(usize::MAX, |last| usize::try_from(last).unwrap_or(usize::MAX));
    let mut events = audit.list(node, after).take(limit.unwrap_or(most).min(most));
    while let Some(event) = events.next().await {
        show(&event?, json)?;
    }
    Ok(Exit::Good)
}

async fn nodes(client: &KmsClient, of: &str, json: bool) -> Result<Exit, Failure> {
    for (index, chain) in client.audit().of_site(of).chains().await?.iter().enumerate() {
        let last = chain.last_ms;
        // No node of another site answers: of that there are copies.
        let answers = index == 0 && of.is_empty();
        if json {
            say_json(&json!({
                "node_id": hex::encode(chain.node),
                "answers": answers,
                "sequence": chain.sequence,
                "hash": hex::encode(chain.hash),
                "last_ms": last,
            }))?;
        } else {
            let last =
                last.map_or_else(|| "no event yet".to_owned(), |at| format!("last {}", date(at)));
            let answers = if answers { "  (this node)" } else { "" };
            let node = hex::encode(chain.node);
            say(&format!("{node}  {:>8} events  {last}{answers}", chain.sequence))?;
        }
    }
    Ok(Exit::Good)
}

fn show(event: &AuditEvent, json: bool) -> Result<(), Failure> {
    if json { say_json(event) } else { say(&line(event)) }
}

/// One line for people.
fn line(event: &AuditEvent) -> String {
    let outcome = match event.outcome {
        AuditOutcome::Done => "done".to_owned(),
        AuditOutcome::Refused => format!("refused {}", event.reason),
        AuditOutcome::Failed => format!("FAILED {}", event.reason),
        AuditOutcome::Unreadable => "NOT READABLE".to_owned(),
    };
    let mut line = format!(
        "{:>8}  {}  {}  {}  {outcome}",
        event.sequence,
        date(event.at_ms),
        event.caller,
        event.verb
    );
    if !event.meter_id.is_empty() {
        line += &format!("  meter {}", event.meter_id);
    }
    if !event.system_title.is_empty() {
        line += &format!("  title {}", hex::encode_upper(&event.system_title));
    }
    if let Some(block) = event.block {
        line += &format!("  block {block}");
    }
    for detail in &event.details {
        // The beginnings of hashes are compared, not counted.
        line += &match detail.name.as_str() {
            "sealed_file" | "sealed_signer" => format!("  {}={:016x}", detail.name, detail.number),
            _ => format!("  {}={}", detail.name, detail.number),
        };
    }
    if !event.blocks.is_empty() {
        line += &format!("  blocks={}", event.blocks.len());
    }
    for head in &event.heads {
        line += &format!("  block {} at {}.{}", head.block, head.epoch, head.sequence);
    }
    if !event.request_id.is_empty() {
        line += &format!("  request {}", event.request_id);
    }
    line
}

async fn verify(client: &KmsClient, what: AuditVerify, json: bool) -> Result<Exit, Failure> {
    let AuditVerify { of, node, key_fingerprint: key_fingerprints, seen } = what;
    let heads = match &seen {
        Some(path) => read_heads(path)?,
        None => Vec::new(),
    };
    let expected = Expected { key_fingerprints, heads };
    let report = client.audit().of_site(&of).verify(node, &expected).await?;
    if let (true, Some(path)) = (report.intact, &seen) {
        write_head(path, &expected.heads, &report)?;
    }
    if json {
        say_json(&report)?;
    } else {
        say(&told(&report, !expected.key_fingerprints.is_empty()))?;
    }
    Ok(Exit::good_if(report.intact))
}

fn told(report: &ChainReport, pinned: bool) -> String {
    let chain = match (&report.first_bad_sequence, &report.reason) {
        (Some(sequence), Some(reason)) => format!("BROKEN at event {sequence}: {reason}"),
        _ => "intact".to_owned(),
    };
    let keys = [&report.key_fingerprint].into_iter().chain(&report.further_key_fingerprints);
    let keys = keys.map(String::as_str).collect::<Vec<_>>().join(", ");
    let key = match pinned {
        true => keys,
        false => format!("{keys} (compare with what `init` told of ami-signing)"),
    };
    block(&[
        ("node", report.node_id.clone()),
        ("chain", chain),
        ("good events", report.sequence.to_string()),
        ("signed heads", report.checkpoints.to_string()),
        ("signing key", key),
    ])
}

/// The ends that earlier checks found good: JSON, one object a line.
fn read_heads(path: &Path) -> Result<Vec<KnownHead>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::files(format!("{}: {error}", path.display()))),
    };
    let bad = || Failure::files(format!("{} was not written by this tool", path.display()));
    text.lines().map(|line| known_head(line).ok_or_else(bad)).collect()
}

fn known_head(line: &str) -> Option<KnownHead> {
    let head: serde_json::Value = serde_json::from_str(line).ok()?;
    let bytes = |name: &str| hex::decode(head.get(name)?.as_str()?).ok();
    Some(KnownHead {
        node: bytes("node_id")?.try_into().ok()?,
        sequence: head.get("sequence")?.as_u64()?,
        hash: bytes("hash")?.try_into().ok()?,
    })
}

/// Remembers the end of this chain in the place of an earlier one.
fn write_head(path: &Path, heads: &[KnownHead], report: &ChainReport) -> Result<(), Failure> {
    let line = |node: &str, sequence: u64, hash: &str| {
        json!({ "node_id": node, "sequence": sequence, "hash": hash }).to_string() + "\n"
    };
    let others = heads.iter().filter(|head| hex::encode(head.node) != report.node_id);
    let mut text: String = others
        .map(|head| line(&hex::encode(head.node), head.sequence, &hex::encode(head.hash)))
        .collect();
    text += &line(&report.node_id, report.sequence, &report.hash);
    let new = path.with_extension("new");
    std::fs::write(&new, text)
        .and_then(|()| std::fs::rename(&new, path))
        .map_err(|error| Failure::files(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(node: u8, sequence: u64) -> ChainReport {
        ChainReport {
            node_id: hex::encode([node; 16]),
            intact: true,
            sequence,
            hash: hex::encode([7; 32]),
            checkpoints: 1,
            first_bad_sequence: None,
            reason: None,
            key_fingerprint: String::new(),
            further_key_fingerprints: Vec::new(),
        }
    }

    #[test]
    fn the_end_of_each_chain_is_remembered_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seen");
        assert!(read_heads(&path).unwrap().is_empty());
        for (node, sequence) in [(1, 10), (2, 5), (1, 20)] {
            let heads = read_heads(&path).unwrap();
            write_head(&path, &heads, &report(node, sequence)).unwrap();
        }
        let mut heads: Vec<_> =
            read_heads(&path).unwrap().iter().map(|head| (head.node[0], head.sequence)).collect();
        heads.sort_unstable();
        assert_eq!(heads, [(1, 20), (2, 5)]);
        std::fs::write(&path, "{}").unwrap();
        assert!(read_heads(&path).is_err());
    }

    #[test]
    fn a_broken_chain_is_told_with_its_first_bad_event() {
        let broken = ChainReport {
            intact: false,
            first_bad_sequence: Some(9),
            reason: Some("gone".into()),
            ..report(1, 8)
        };
        assert!(told(&broken, true).contains("BROKEN at event 9: gone"));
    }
}
