//! The rooms of `rpc`: a part that is large enough to have floors of its own.

use super::source::{Source, named_below, named_upwards};

/// Floor of every room of `rpc`, folder or file. A room may name only rooms on lower floors; those on one
/// floor do not name each other. `mod.rs` hands on, for those outside, and is named by none of them.
const ROOMS: &[(&str, u8)] = &[
    ("access", 10),
    ("drain", 10),
    ("config", 20),
    ("figures", 20),
    ("messages", 30),
    ("tls", 30),
    ("approvals", 40),
    ("peer", 40),
    ("shares", 40),
    ("gate", 50),
    ("http", 60),
    ("listen", 60),
    ("services", 60),
    ("server", 70),
];

/// What is wrong with one file of `rpc`; `path` is relative to `kms-server/src`.
pub(super) fn complaints_of_room(path: &str, source: &Source) -> Vec<String> {
    let Some(below) = path.strip_prefix("rpc/").filter(|below| *below != "mod.rs") else {
        return Vec::new();
    };
    let room = below.split(['/', '.']).next().unwrap_or_default();
    let Some(floor) = floor_of(room) else {
        return vec![format!("{path}: `{room}` has no floor; give it one in ROOMS")];
    };
    let mut others = named_upwards("rpc", path, source);
    others.retain(|other| floor_of(other).is_some());
    others.extend(named_below("rpc", source));
    others.remove(room);
    let complaint = |other: String| match floor_of(&other) {
        Some(its) if its < floor => None,
        Some(_) => Some(format!("{path} reaches up to `rpc/{other}`")),
        None => Some(format!("{path} names `rpc::{other}`, which is no room")),
    };
    others.into_iter().filter_map(complaint).collect()
}

fn floor_of(room: &str) -> Option<u8> {
    ROOMS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

#[cfg(test)]
mod the_checker {
    use super::*;

    fn room(path: &str, text: &str) -> Vec<String> {
        complaints_of_room(path, &Source::of(text))
    }

    #[test]
    fn complains_of_each_way_to_reach_up() {
        for text in [
            "use crate::rpc::gate::peer::Peer;",
            "use crate::{audit::Audit, rpc::{access::verb::Verb, gate}};",
            "fn f() { kms_server::rpc::gate::f() }",
            "use super::super::gate::peer::Peer;",
            "mod tests { use super::super::super::gate::peer; }",
        ] {
            let due = ["rpc/shares/budget.rs reaches up to `rpc/gate`"];
            assert_eq!(room("rpc/shares/budget.rs", text), due, "{text}");
        }
        for (path, text) in [
            ("rpc/shares/mod.rs", "use super::gate::peer;"),
            ("rpc/figures.rs", "use super::{access::verb::Verb, gate::peer};"),
            // On the same floor.
            ("rpc/listen/accept.rs", "use crate::rpc::services::health;"),
        ] {
            assert_eq!(room(path, text).len(), 1, "{path}: {text}");
        }
    }

    #[test]
    fn complains_of_what_is_no_room() {
        let face = room("rpc/tls/checking.rs", "use crate::rpc::TlsConfig;");
        assert_eq!(face, ["rpc/tls/checking.rs names `rpc::TlsConfig`, which is no room"]);
        assert_eq!(room("rpc/utils/mod.rs", "").len(), 1);
        assert_eq!(room("rpc/utils.rs", "").len(), 1);
    }

    #[test]
    fn does_not_complain_of_what_lies_below_or_within_or_elsewhere() {
        for (path, text) in [
            ("rpc/gate/layer.rs", "use super::peer::Peer; use crate::rpc::shares::upload;"),
            ("rpc/gate/layer.rs", "use crate::{audit, rpc::gate::call}; use http::Request;"),
            ("rpc/gate/layer.rs", "mod tests { use super::super::peer; }"),
            ("rpc/figures.rs", "use super::access::verb::Verb;"),
            ("rpc/mod.rs", "pub use server::serve; pub use gate::layer;"),
            ("keyring/mod.rs", "use super::gate;"),
        ] {
            assert!(room(path, text).is_empty(), "{path}: {text}: {:?}", room(path, text));
        }
    }
}
