//! Whether the other site follows this one, which writes: told by name once nobody does for longer than a site needs to
//! come back.

use std::time::Duration;

use kms_core::{moment::Moment, replication::following::BACK_OFF_MAX};

/// Heartbeats that a follower misses before it ends its connection, and one in which it is heard again.
const HEARTBEATS: u32 = 5;

/// The time in which a site that has only lost its connection is back: it notices that within four heartbeats, and tries
/// again after [`BACK_OFF_MAX`] at the latest.
pub(super) fn grace(heartbeat: Duration) -> Duration {
    BACK_OFF_MAX + heartbeat * HEARTBEATS
}

/// The knowledge of one server about who follows its site. Nothing but the last of each.
#[derive(Default)]
pub(super) struct Followed {
    /// Nobody has followed since then; `None`: somebody does, or nothing is known, or this site does not write.
    since: Option<Moment>,
    /// Somebody has followed since this site writes, as far as this server knows.
    once: bool,
    /// The last follower that was turned away here: who, why, and when.
    turned_away: Option<(String, String, Moment)>,
    /// Why the other site's answer to the last question did not come.
    unheard: Option<String>,
    /// That nobody follows stands in the log.
    logged: bool,
}

impl Followed {
    /// Somebody follows a server of this site, or nobody does.
    pub(super) fn look(&mut self, now: Moment, is_followed: bool) {
        if is_followed {
            *self = Self { once: true, unheard: self.unheard.take(), ..Self::default() };
        } else {
            self.since.get_or_insert(now);
        }
    }

    /// A follower was turned away.
    pub(super) fn turned_away(&mut self, now: Moment, who: &str, why: String) {
        self.turned_away = Some((who.to_owned(), why, now));
    }

    /// Whether the other site answers; the reason why not.
    pub(super) fn asked(&mut self, unheard: Option<String>) {
        self.unheard = unheard;
    }

    /// For how long nobody has followed, in milliseconds, if that is longer than `grace`.
    pub(super) fn missing(&self, now: Moment, grace: Duration) -> Option<u64> {
        self.since.filter(|since| now > *since + grace).map(|since| now.ms_since(since))
    }

    /// The same in a sentence, once: for the log.
    pub(super) fn news(&mut self, peer: &str, now: Moment, grace: Duration) -> Option<String> {
        let fault = self.fault(peer, now, grace).filter(|_| !self.logged)?;
        self.logged = true;
        Some(fault)
    }

    /// The same in a sentence about `peer`, with what is known of the reason.
    pub(super) fn fault(&self, peer: &str, now: Moment, grace: Duration) -> Option<String> {
        let ms = self.missing(now, grace)?;
        let before = if self.once { "any more" } else { "at all" };
        // The other site comes again within the grace: who was turned away before that is somebody else, or is heard now.
        let turned_away = self.turned_away.as_ref().filter(|(_, _, at)| now <= *at + grace);
        let turned_away = turned_away.map(|(who, why, at)| {
            let ago = now.ms_since(*at).div_ceil(1_000);
            format!("the last one that asked to follow, {who}, was turned away {ago} s ago: {why}")
        });
        let silent = self.unheard.as_ref().map(|why| format!("it does not answer: {why}"));
        let why = match (turned_away, silent) {
            (Some(away), Some(silent)) => format!("{away}; {silent}"),
            (Some(away), None) => away,
            (None, Some(silent)) => format!("nobody asks to, and {silent}"),
            (None, None) => "nobody asks to, and it answers: its own `site status` and its log say why it does not come \
                             through, and this server's log whom it turned away before a call"
                .to_owned(),
        };
        Some(format!(
            "site {peer} does not follow this site {before}, for {} s: what is written here is nowhere else; {why}",
            ms / 1_000
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(15);

    fn at(s: u64) -> Moment {
        Moment::from_ms(s * 1_000)
    }

    #[test]
    fn nobody_is_missed_before_a_site_could_be_back_and_then_it_is_said_why() {
        let mut followed = Followed::default();
        let fault = |followed: &Followed, s| followed.fault("south", at(s), GRACE);
        assert_eq!(fault(&followed, 99), None, "nobody has looked yet");
        followed.look(at(100), false);
        followed.look(at(110), false);
        assert_eq!(fault(&followed, 115), None);
        let said = fault(&followed, 116).unwrap();
        assert!(
            said.starts_with("site south does not follow this site at all, for 16 s"),
            "{said}"
        );
        assert!(said.contains("its own `site status`"), "{said}");
        followed.asked(Some("connection refused".to_owned()));
        assert!(fault(&followed, 116).unwrap().ends_with("does not answer: connection refused"));
        followed.turned_away(at(114), "kms-b", "the policy does not know kms-b".to_owned());
        let said = fault(&followed, 116).unwrap();
        let away = "kms-b, was turned away 2 s ago: the policy does not know kms-b";
        assert!(
            said.ends_with(&format!("{away}; it does not answer: connection refused")),
            "{said}"
        );
        followed.asked(None);
        assert!(fault(&followed, 129).unwrap().contains("kms-b, was turned away 15 s ago"));
        // The other site would have asked again since.
        assert!(!fault(&followed, 130).unwrap().contains("kms-b"));
        // It comes, and what was before is over.
        followed.look(at(117), true);
        assert_eq!(followed.missing(at(999), GRACE), None);
        followed.look(at(118), false);
        assert_eq!(followed.missing(at(133), GRACE), None, "a short reconnect");
        let said = fault(&followed, 134).unwrap();
        assert!(said.contains("any more") && !said.contains("kms-b"), "{said}");
    }

    #[test]
    fn the_grace_is_what_a_site_takes_that_lost_its_connection() {
        assert_eq!(grace(Duration::from_millis(1_000)), GRACE);
        assert!(grace(Duration::from_millis(300)) < GRACE);
    }
}
