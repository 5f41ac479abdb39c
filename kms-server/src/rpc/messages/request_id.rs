//! The name of a request: the caller's own, or one of ours. It stands in the log, in the answer's
//! metadata, and in the `ErrorInfo` of a refusal.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

use http::{HeaderMap, HeaderName, HeaderValue};

/// Its place in the metadata of a call and of its answer.
pub(crate) const NAME: &str = "x-request-id";
const HEADER: HeaderName = HeaderName::from_static(NAME);
/// Its place in `ErrorInfo.metadata`.
pub(crate) const METADATA_KEY: &str = "request_id";

/// 1 to 64 letters, digits, `-`, `_`, `.` and `:`: nothing that a log or a header would have to escape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    const LEN_MAX: usize = 64;

    /// The caller's, if it gave exactly one that is well formed.
    fn of_caller(headers: &HeaderMap) -> Option<Self> {
        let mut given = headers.get_all(&HEADER).iter();
        let id = given.next().filter(|_| given.next().is_none())?;
        let is_plain =
            |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
        let bytes = id.as_bytes();
        let fits = (1..=Self::LEN_MAX).contains(&bytes.len()) && bytes.iter().all(is_plain);
        fits.then(|| Self(id.clone()))
    }

    /// As text.
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// Writes it into the metadata of an answer.
    pub(crate) fn stamp(&self, headers: &mut HeaderMap) {
        headers.insert(HEADER, self.0.clone());
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Makes ids for those who bring none: no two alike in this process, and not the next one's neighbour.
pub(crate) struct RequestIds {
    secret: RandomState,
    next: AtomicU64,
}

impl RequestIds {
    pub(crate) fn new() -> Self {
        Self { secret: RandomState::new(), next: AtomicU64::new(0) }
    }

    /// The id of a call that came with these headers.
    pub(crate) fn of(&self, headers: &HeaderMap) -> RequestId {
        RequestId::of_caller(headers).unwrap_or_else(|| self.make())
    }

    fn make(&self) -> RequestId {
        let id = self.secret.hash_one(self.next.fetch_add(1, Ordering::Relaxed));
        let id = HeaderValue::from_str(&format!("{id:016x}"));
        RequestId(id.unwrap_or(HeaderValue::from_static("0")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_for(given: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for id in given {
            headers.append(HEADER, HeaderValue::from_str(id).unwrap());
        }
        RequestIds::new().of(&headers).as_str().to_owned()
    }

    #[test]
    fn a_well_formed_id_is_kept() {
        let long = "x".repeat(64);
        for id in ["7", "0123456789abcdef", "hes-1:2026.11_22", &long] {
            assert_eq!(id_for(&[id]), id);
        }
    }

    #[test]
    fn anything_else_is_replaced() {
        let long = "x".repeat(65);
        for given in
            [&[][..], &[""], &["a b"], &["a\"b"], &["a{b}"], &["a\tb"], &[&long], &["a", "b"]]
        {
            let id = id_for(given);
            assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{given:?}");
        }
    }

    #[test]
    fn made_ids_differ() {
        let ids = RequestIds::new();
        let headers = HeaderMap::new();
        let made: std::collections::HashSet<String> =
            (0..1_000).map(|_| ids.of(&headers).to_string()).collect();
        assert_eq!(made.len(), 1_000);
    }
}
