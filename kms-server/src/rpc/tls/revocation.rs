//! Revocation lists: which certificates an authority has taken back.
//!
//! Where lists are configured, they decide for every client, and nothing is taken on trust: an authority
//! of `client_ca` without a list, a list that its authority did not sign, and a list past its time are
//! refused when the files are read. rustls asks again at each handshake, for intermediates too, whose
//! lists only it can check: their certificates come with the client.
//!
//! Lists never go backwards: see `newest`.
//!
//! A list's time is up to its next update, and a period of grace from there on. An authority that went
//! down with a data centre publishes nothing, and the site that is left has to serve: until the grace
//! is over the old list holds, and each status and log says so.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rustls::{
    RootCertStore,
    crypto::ring,
    pki_types::{
        CertificateDer, CertificateRevocationListDer,
        pem::{self, PemObject as _},
    },
    server::WebPkiClientVerifier,
};
use sha2::{Digest as _, Sha256};
use x509_parser::{
    certificate::X509Certificate, error::X509Error, extensions::ParsedExtension,
    prelude::FromDer as _, revocation_list::CertificateRevocationList,
};

use super::{
    error::TlsError,
    newest::{Authority, Edition, Newest},
};

/// The first byte of a list in DER; PEM is text.
const DER_SEQUENCE: u8 = 0x30;

/// Lists that were checked at `now_ms`, and how long they hold.
pub(crate) struct Revocation {
    pub(crate) lists: Vec<CertificateRevocationListDer<'static>>,
    /// The renewal of the lists that is due first; `None` without lists.
    pub(crate) due: Option<Due>,
    /// The authority of each list, and the list's edition among those of that authority.
    pub(crate) used: Vec<(Authority, Edition)>,
}

/// When lists have to be replaced; milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// From here on it is late enough to warn.
    pub(crate) warn_ms: u64,
    /// The next update is due.
    pub(crate) next_ms: u64,
    /// The grace is over: the list is worth nothing.
    pub(crate) ends_ms: u64,
}

impl Due {
    /// A list is warned of from three quarters of its time on, and never earlier than a week before
    /// its next update: authorities renew once a year or once an hour.
    fn of(from_ms: u64, next_ms: u64, grace: Duration) -> Self {
        const WEEK_MS: u64 = 7 * 24 * 3_600 * 1_000;
        let notice = (next_ms.saturating_sub(from_ms) / 4).min(WEEK_MS);
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let warn_ms = next_ms.saturating_sub(notice);
        Self { warn_ms, next_ms, ends_ms: next_ms.saturating_add(grace_ms) }
    }

    /// Of two lists, what happens first to either: one that is renewed each hour must not hide that the
    /// other runs out.
    fn first(self, other: Self) -> Self {
        Self {
            warn_ms: self.warn_ms.min(other.warn_ms),
            next_ms: self.next_ms.min(other.next_ms),
            ends_ms: self.ends_ms.min(other.ends_ms),
        }
    }

    /// The part of its time that it is in; changes are worth a line in the log.
    pub(crate) fn stage(self, now_ms: u64) -> usize {
        [self.warn_ms, self.next_ms, self.ends_ms].iter().filter(|at| now_ms >= **at).count()
    }

    /// The warning of it that is due now; `None` while it is not urgent.
    pub(crate) fn warning(self, now_ms: u64) -> Option<String> {
        if now_ms >= self.ends_ms {
            let sentence = "a revocation list of rpc.tls.client_crl has expired, so no client is let \
                            in; install the authority's new one";
            Some(sentence.to_owned())
        } else if now_ms >= self.next_ms {
            Some(format!(
                "a revocation list of rpc.tls.client_crl has expired: what was revoked since is let in, \
                 and in {} no client is; install the authority's new one",
                hours(self.ends_ms - now_ms)
            ))
        } else if now_ms >= self.warn_ms {
            Some(format!(
                "a revocation list of rpc.tls.client_crl expires in {}; install the authority's new one",
                hours(self.next_ms - now_ms)
            ))
        } else {
            None
        }
    }
}

fn hours(ms: u64) -> String {
    let minutes = ms / 60_000;
    format!("{} h {} min", minutes / 60, minutes % 60)
}

/// The demands that lists have to satisfy.
pub(crate) struct Demands<'a> {
    /// The file of the authorities.
    pub(crate) client_ca: &'a Path,
    /// The authorities in it: each needs a list.
    pub(crate) authorities: &'a [CertificateDer<'a>],
    /// No list is older than the newest of its authority.
    pub(crate) newest: &'a Newest,
    /// Each holds at this moment; milliseconds since 1970.
    pub(crate) now_ms: u64,
    /// The time for which it still holds after its next update was due.
    pub(crate) grace: Duration,
}

/// Reads all lists and holds them against the authorities of `client_ca`.
pub(crate) fn load(
    files: &[(PathBuf, Vec<u8>)],
    demands: &Demands<'_>,
) -> Result<Revocation, TlsError> {
    let all = read_all(files, demands.authorities)?;
    if all.is_empty() {
        return Ok(Revocation { lists: Vec::new(), due: None, used: Vec::new() });
    }
    let lists = all
        .iter()
        .map(|(path, list)| List::of(path, list, demands.grace))
        .collect::<Result<Vec<_>, TlsError>>()?;
    let authorities = parsed(demands)?;
    let mut used = Vec::with_capacity(lists.len());
    for (at, list) in lists.iter().enumerate() {
        list.check(&authorities, demands.now_ms)?;
        let (authority, edition) = (list.authority(&authorities), list.edition());
        demands.newest.check(&authority, &edition, list.path, &list.issuer())?;
        used.push((authority, edition));
        if lists[..at].iter().any(|other| other.speaks_for_the_same(list)) {
            return Err(TlsError::CrlTwice { path: list.path.to_owned(), issuer: list.issuer() });
        }
    }
    check_all_have_one(&authorities, &lists, demands.client_ca)?;
    let due = lists.iter().map(|list| list.due).reduce(Due::first);
    Ok(Revocation { due, used, lists: all.into_iter().map(|(_, list)| list).collect() })
}

type Lists<'a> = Vec<(&'a Path, CertificateRevocationListDer<'static>)>;

/// All lists, each with its file. Whatever rustls can't use is found here, where the file has a name.
fn read_all<'a>(
    files: &'a [(PathBuf, Vec<u8>)],
    authorities: &[CertificateDer<'_>],
) -> Result<Lists<'a>, TlsError> {
    let mut all = Vec::new();
    for (path, content) in files {
        let lists = read(path, content)?;
        usable(&lists, authorities).map_err(|error| unusable(path, error))?;
        all.extend(lists.into_iter().map(|list| (path.as_path(), list)));
    }
    Ok(all)
}

fn parsed<'a>(demands: &'a Demands<'_>) -> Result<Vec<X509Certificate<'a>>, TlsError> {
    let parsed = |authority: &'a CertificateDer<'_>| {
        X509Certificate::from_der(authority).map(|(_, parsed)| parsed)
    };
    let path = || demands.client_ca.to_owned();
    let all = demands.authorities.iter().map(parsed).collect::<Result<Vec<_>, _>>();
    all.map_err(|error| TlsError::Unusable { path: path(), source: error.into() })
}

/// Refuses an authority without a list: none of its clients could be let in.
fn check_all_have_one(
    authorities: &[X509Certificate<'_>],
    lists: &[List<'_>],
    client_ca: &Path,
) -> Result<(), TlsError> {
    for authority in authorities {
        let subject = authority.subject().as_raw();
        if !lists.iter().any(|list| list.parsed.issuer().as_raw() == subject) {
            let issuer = authority.subject().to_string();
            return Err(TlsError::CrlMissing { path: client_ca.to_owned(), issuer });
        }
    }
    Ok(())
}

/// One list, or several of PEM.
fn read(
    path: &Path,
    content: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    if content.first() == Some(&DER_SEQUENCE) {
        return Ok(vec![content.to_vec().into()]);
    }
    let lists = CertificateRevocationListDer::pem_slice_iter(content)
        .collect::<Result<Vec<_>, pem::Error>>()
        .map_err(|error| unusable(path, error))?;
    if lists.is_empty() { Err(TlsError::NoCrl { path: path.to_owned() }) } else { Ok(lists) }
}

/// Whether rustls takes these lists at all.
fn usable(
    lists: &[CertificateRevocationListDer<'static>],
    authorities: &[CertificateDer<'_>],
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned().map(CertificateDer::into_owned));
    let provider = ring::default_provider().into();
    WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
        .with_crls(lists.to_vec())
        .build()?;
    Ok(())
}

struct List<'a> {
    path: &'a Path,
    parsed: CertificateRevocationList<'a>,
    due: Due,
}

impl<'a> List<'a> {
    fn of(
        path: &'a Path,
        list: &'a CertificateRevocationListDer<'_>,
        grace: Duration,
    ) -> Result<Self, TlsError> {
        let (_, parsed) =
            CertificateRevocationList::from_der(list).map_err(|error| unusable(path, error))?;
        let next = parsed.next_update().and_then(|time| millis(time.timestamp()));
        let next_ms = next.ok_or_else(|| unusable(path, "it does not say when the next is due"))?;
        let from_ms = millis(parsed.last_update().timestamp()).unwrap_or(0);
        Ok(Self { path, parsed, due: Due::of(from_ms, next_ms, grace) })
    }

    fn check(&self, authorities: &[X509Certificate<'_>], now_ms: u64) -> Result<(), TlsError> {
        let (path, issuer) = (|| self.path.to_owned(), || self.issuer());
        // An issuer that is no authority of ours may be an intermediate: rustls checks its list.
        let mut signers = authorities
            .iter()
            .filter(|authority| authority.subject().as_raw() == self.parsed.issuer().as_raw())
            .map(|authority| self.parsed.verify_signature(authority.public_key()))
            .peekable();
        let is_ours = signers.peek().is_some();
        let is_signed = signers.any(|verdict| match verdict {
            // Of an algorithm that this check does not know, rustls says more at the handshake.
            Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => true,
            Err(_) => false,
        });
        if is_ours && !is_signed {
            return Err(TlsError::CrlForged { path: path(), issuer: issuer() });
        }
        if now_ms >= self.due.ends_ms {
            return Err(TlsError::CrlExpired { path: path(), issuer: issuer() });
        }
        Ok(())
    }

    /// rustls asks the first list that speaks for a certificate and no other: a second one of the
    /// same scope would be there in vain.
    fn speaks_for_the_same(&self, other: &Self) -> bool {
        self.parsed.issuer().as_raw() == other.parsed.issuer().as_raw()
            && self.scope() == other.scope()
    }

    /// The part of the authority's certificates that this list is about; `None`: all of them.
    fn scope(&self) -> Option<&[u8]> {
        let is_scope = |extension: &&x509_parser::extensions::X509Extension<'_>| {
            matches!(extension.parsed_extension(), ParsedExtension::IssuingDistributionPoint(_))
        };
        self.parsed.extensions().iter().find(is_scope).map(|extension| extension.value)
    }

    /// The authority that speaks in this list. One that was replaced under the same name has another key and begins
    /// anew; of an intermediate the key is not known here, so its name has to do.
    fn authority(&self, authorities: &[X509Certificate<'_>]) -> Authority {
        let signer = authorities.iter().find(|authority| {
            authority.subject().as_raw() == self.parsed.issuer().as_raw()
                && self.parsed.verify_signature(authority.public_key()).is_ok()
        });
        let key = signer.map_or(&[][..], |signer| signer.public_key().raw);
        let mut digest = Sha256::new();
        for part in [self.parsed.issuer().as_raw(), key, self.scope().unwrap_or_default()] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    fn edition(&self) -> Edition {
        let number = self.parsed.crl_number().map(|number| number.to_bytes_be());
        let this_update_ms = millis(self.parsed.last_update().timestamp()).unwrap_or(0);
        Edition { number, this_update_ms, resets: 0 }
    }

    fn issuer(&self) -> String {
        self.parsed.issuer().to_string()
    }
}

fn millis(seconds: i64) -> Option<u64> {
    u64::try_from(seconds).ok()?.checked_mul(1_000)
}

fn unusable(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TlsError {
    TlsError::CrlUnusable { path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_warned_of_in_its_last_quarter_and_at_most_a_week_before_its_end() {
        const HOUR: u64 = 3_600_000;
        let daily = Due::of(0, 24 * HOUR, Duration::ZERO);
        assert_eq!(daily.warning(18 * HOUR - 1), None);
        let said = daily.warning(18 * HOUR).unwrap();
        assert!(said.contains("expires in 6 h 0 min"), "{said}");
        assert!(daily.warning(24 * HOUR - 1).unwrap().contains("0 h 0 min"));
        assert!(daily.warning(24 * HOUR).unwrap().contains("has expired"));
        let yearly = Due::of(0, 365 * 24 * HOUR, Duration::ZERO);
        assert_eq!(yearly.warn_ms, (365 - 7) * 24 * HOUR);

        let with_grace = Due::of(0, 24 * HOUR, Duration::from_millis(2 * HOUR));
        let said = with_grace.warning(24 * HOUR).unwrap();
        assert!(said.contains("has expired") && said.contains("in 2 h 0 min no client"), "{said}");
        assert!(with_grace.warning(26 * HOUR).unwrap().contains("so no client is let in"));
        let stages = [17, 18, 24, 26].map(|hour| with_grace.stage(hour * HOUR));
        assert_eq!(stages, [0, 1, 2, 3]);
    }
}
