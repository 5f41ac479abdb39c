//! Marks as a site's database has them: authenticated, since a mark that was lowered would give counters out twice.

use super::allocator::{Mark, Witnessed};
use crate::{RecordMac, block::local::LocalKey};

/// A mark and its MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredMark {
    /// The mark.
    pub mark: Mark,
    /// Of the block's secret that the MAC is made with.
    pub secret_version: u32,
    /// Under the block's `local` key, over [`message`].
    pub mac: RecordMac,
}

/// The input of a mark's MAC: fixed lengths, so injective.
pub fn message(mark: &Mark, secret_version: u32) -> Vec<u8> {
    let Mark { block, epoch, end, holder, term } = mark;
    let holder = holder.map_or([0; 17], |node| {
        let mut bytes = [1; 17];
        bytes[1..].copy_from_slice(&node.0);
        bytes
    });
    [
        b"ami.kms/mark/1".as_slice(),
        &block.0.to_be_bytes(),
        &secret_version.to_be_bytes(),
        &epoch.0.to_be_bytes(),
        &end.to_be_bytes(),
        &holder,
        &term.to_be_bytes(),
    ]
    .concat()
}

impl StoredMark {
    /// A mark that this site is to store.
    pub fn sealed(mark: Mark, secret_version: u32, key: &LocalKey) -> Self {
        Self { mark, secret_version, mac: key.mac(&message(&mark, secret_version)) }
    }

    /// Whether this site wrote it.
    pub fn is_authentic(&self, key: &LocalKey) -> bool {
        key.is_authentic(&message(&self.mark, self.secret_version), &self.mac)
    }

    /// Whether it may stand in the place of `former`: nothing that was reserved is given back, and each change has a
    /// term of its own.
    pub fn follows(&self, former: Option<&Self>) -> bool {
        former.is_none_or(|former| {
            let (old, new) = (&former.mark, &self.mark);
            let kept = (old.epoch, old.end) <= (new.epoch, new.end);
            old.block == new.block && kept && old.term < new.term
        })
    }
}

impl From<&Mark> for Witnessed {
    fn from(mark: &Mark) -> Self {
        Self { epoch: mark.epoch, end: mark.end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        BlockNo, BlockSecret, DomainId, Epoch,
        audit::NodeId,
        block::keys::{BlockKeys, SUBKEYS_LEN, SecretBinding},
    };

    fn key(site: &str) -> LocalKey {
        let domain = DomainId([1; 16]);
        let place = SecretBinding { domain: &domain, block: BlockNo(7), secret_version: 1 };
        let secret = BlockSecret::fill_with(|bytes| {
            bytes.fill(3);
            Ok::<(), ()>(())
        })
        .unwrap();
        let mut subkeys = [0; SUBKEYS_LEN];
        place.derive_subkeys(&secret, &mut subkeys);
        LocalKey::of(&BlockKeys::new(domain, &subkeys).unwrap(), site)
    }

    fn mark(end: u32, term: u64) -> Mark {
        let holder = Some(NodeId([4; 16]));
        Mark { block: BlockNo(7), epoch: Epoch(2), end, holder, term }
    }

    #[test]
    fn a_mark_is_authentic_as_a_whole_and_at_its_site_only() {
        let stored = StoredMark::sealed(mark(1_024, 1), 1, &key("north"));
        assert!(stored.is_authentic(&key("north")) && !stored.is_authentic(&key("south")));
        for other in [
            Mark { end: 0, ..stored.mark },
            Mark { epoch: Epoch(4), ..stored.mark },
            Mark { term: 2, ..stored.mark },
            Mark { holder: None, ..stored.mark },
            Mark { block: BlockNo(8), ..stored.mark },
        ] {
            assert!(!StoredMark { mark: other, ..stored }.is_authentic(&key("north")), "{other:?}");
        }
        assert!(!StoredMark { secret_version: 2, ..stored }.is_authentic(&key("north")));
    }

    #[test]
    fn a_mark_follows_another_one_only_upwards() {
        let stored = |end, term| StoredMark::sealed(mark(end, term), 1, &key("north"));
        let now = stored(2_048, 5);
        assert!(stored(2_048, 6).follows(Some(&now)) && stored(0, 1).follows(None));
        assert!(!stored(1_024, 6).follows(Some(&now)) && !stored(4_096, 5).follows(Some(&now)));
        let next = Mark { epoch: Epoch(4), ..mark(0, 6) };
        assert!(StoredMark::sealed(next, 1, &key("north")).follows(Some(&now)));
    }
}
