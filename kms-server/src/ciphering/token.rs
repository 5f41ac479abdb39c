//! The third pass: APDUs under keys that only the token uses, grouped by key.

use std::collections::HashMap;

use futures_util::{StreamExt, stream};

use super::{
    arrival::Arrival,
    attempt::{self, TokenTry},
    batch::{Asked, Pass},
    item::Outcome,
};
use crate::hsm::{ApduOpening, GcmOpen, NotAuthentic, TokenError, WrappedKey};
use kms_core::{KeyId, Verdict};

/// Keys that one batch has the token work with at the same time.
const AT_ONCE: usize = 4;

/// APDUs in one call through the door: a place at the token is held for about a millisecond, so that
/// no batch keeps the others out.
const CALL_MAX: usize = 64;

/// APDUs of one round that share a key.
struct Group {
    key: WrappedKey,
    requests: Vec<GcmOpen>,
    asked: Vec<(Asked, IfOpened)>,
}

/// The outcome of a request if it opens.
struct IfOpened {
    opened: Outcome,
    plain_payload: bool,
    arrival: Option<Arrival>,
    gives_compromised: bool,
}

type Answer = Result<Vec<Result<Vec<u8>, NotAuthentic>>, TokenError>;

/// Tries the items' token keys, the first of each item first, until each item has an outcome.
pub(super) async fn ask(token: &ApduOpening, pass: &mut Pass<'_>) {
    while !pass.token.is_empty() {
        let groups = group(std::mem::take(&mut pass.token));
        let calls = stream::iter(groups).map(|group| async move {
            let Group { key, requests, asked } = group;
            (token.open_apdus(key, requests).await, asked)
        });
        let mut calls = std::pin::pin!(calls.buffer_unordered(AT_ONCE));
        while let Some((answer, asked)) = calls.next().await {
            settle_group(pass, answer, asked);
        }
    }
}

/// One round: the next try of each item, grouped by key, at most [`CALL_MAX`] a group.
fn group(asked: Vec<Asked>) -> Vec<Group> {
    let mut full = Vec::new();
    let mut open: HashMap<KeyId, Group> = HashMap::new();
    for mut asked in asked {
        let Some(TokenTry { key, request, opened, plain_payload, arrival, gives_compromised }) =
            asked.tries.pop()
        else {
            continue;
        };
        let id = key.id;
        let group = open.entry(id).or_insert_with(|| Group {
            key,
            requests: Vec::new(),
            asked: Vec::new(),
        });
        group.requests.push(request);
        group.asked.push((asked, IfOpened { opened, plain_payload, arrival, gives_compromised }));
        if group.requests.len() == CALL_MAX {
            full.extend(open.remove(&id));
        }
    }
    full.extend(open.into_values());
    full
}

fn settle_group(pass: &mut Pass<'_>, answer: Answer, asked: Vec<(Asked, IfOpened)>) {
    let results = match answer {
        Ok(results) if results.len() == asked.len() => results,
        Ok(_) => return fail_group(pass, asked, "the token answered for another number of APDUs"),
        Err(error) => return fail_group(pass, asked, &error.to_string()),
    };
    for ((asked, tried), result) in asked.into_iter().zip(results) {
        if result.is_ok() {
            pass.note_arrival(asked.index, tried.arrival);
        }
        match result {
            Ok(_) if tried.plain_payload => {
                let payload = attempt_payload(pass, asked.index);
                settle_opened(pass, asked.index, tried, payload);
            }
            Ok(plaintext) => settle_opened(pass, asked.index, tried, plaintext),
            Err(NotAuthentic) if asked.tries.is_empty() => {
                let outcome = Outcome {
                    verdict: Verdict::MicFailure,
                    encryption_key_version: 0,
                    authentication_key_version: 0,
                    shown: None,
                    ..tried.opened
                };
                pass.settle(asked.index, outcome, Vec::new());
            }
            Err(NotAuthentic) => pass.token.push(asked),
        }
    }
}

fn settle_opened(pass: &mut Pass<'_>, index: usize, tried: IfOpened, plaintext: Vec<u8>) {
    let IfOpened { opened, gives_compromised, .. } = tried;
    let given = attempt::withheld_if_compromised(&opened, gives_compromised, plaintext);
    pass.settle(index, opened, given);
}

/// The plain APDU of an item that was authenticated only.
fn attempt_payload(pass: &Pass<'_>, index: usize) -> Vec<u8> {
    attempt::parse(pass.items[index].apdu).map(|apdu| apdu.payload().to_vec()).unwrap_or_default()
}

fn fail_group(pass: &mut Pass<'_>, asked: Vec<(Asked, IfOpened)>, reason: &str) {
    for (asked, tried) in asked {
        let outcome = Outcome {
            verdict: Verdict::Unavailable,
            encryption_key_version: 0,
            authentication_key_version: 0,
            reason: Some(reason.into()),
            shown: None,
            ..tried.opened
        };
        pass.settle(asked.index, outcome, Vec::new());
    }
}
