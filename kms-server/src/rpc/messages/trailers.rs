//! The end of a call as HTTP/2 carries it: the code in headers or trailers, and the request's name beside it.

use http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::request_id::{METADATA_KEY, RequestId};

/// The code that stands in headers or trailers.
pub(crate) fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

/// Writes the request's id into the headers or trailers of an answer, and, where they refuse it, into
/// the `ErrorInfo` of the refusal.
pub(crate) fn name_request(headers: &mut HeaderMap, id: &RequestId) {
    let refusal = Status::from_header_map(headers).filter(|status| status.code() != Code::Ok);
    if let Some(status) = refusal {
        let mut details = status.get_error_details();
        if let Some(info) = details.error_info().cloned() {
            let mut metadata = info.metadata;
            metadata.insert(METADATA_KEY.to_owned(), id.as_str().to_owned());
            details.set_error_info(info.reason, info.domain, metadata);
            let named = Status::with_error_details(status.code(), status.message(), details);
            // Replaces code, sentence and details; what else stands there stays.
            if named.add_header(headers).is_err() {
                tracing::warn!(request_id = %id, "a refusal could not be given its request id");
            }
        }
    }
    id.stamp(headers);
}
